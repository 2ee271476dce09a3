#include "train/step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/concat.h"
#include "base/log.h"
#include "parallel/communicator.h"
#include "parallel/data_parallel.h"
#include "parallel/shared_embedding.h"
#include "parallel/stage_link.h"
#include "telemetry/trace.h"
#include "train/device_batch.h"
#include "train/schedule.h"

namespace moebius::train {
namespace {

// Libraries choose and load their kernels in the first steps, and the optimizer makes its state.
constexpr int64_t kStepsBeforeRecording = 2;
constexpr int64_t kHead = 5;  // loss, balance loss, norm, scale, loss of the tokens after next

bool is_finite(const at::Tensor& tensor) {
  return at::isfinite(tensor).all().item<bool>();
}

// All parameters are whole while it lives.
class Gathered {
 public:
  Gathered(nn::Decoder& decoder, parallel::DataParallel* shares) : decoder_(decoder), shares_(shares) {
    if (shares == nullptr) return;
    shares->gather_all();
    decoder.set_gate(nullptr);
  }
  ~Gathered() {
    if (shares_ == nullptr) return;
    decoder_.set_gate(shares_);
    shares_->release_all();
  }
  Gathered(const Gathered&) = delete;
  Gathered& operator=(const Gathered&) = delete;

 private:
  nn::Decoder& decoder_;
  parallel::DataParallel* shares_;
};

}  // namespace

StepTotals totals_of(const std::vector<data::Batch>& micro_batches) {
  StepTotals totals;
  for (const data::Batch& batch : micro_batches) {
    totals.num_tokens += batch.num_tokens();
    totals.num_targets += batch.num_targets;
  }
  return totals;
}

nn::Recompute recompute_of(const std::string& word) {
  // "auto" that nobody has resolved (train/recompute_choice.h) means that memory is not scarce.
  if (word == "full") return nn::Recompute::full;
  return word == "selective" ? nn::Recompute::selective : nn::Recompute::none;
}

double StepNumbers::max_violation() const {
  double worst = 0;
  for (const moe::LayerLoad& layer : layers) worst = std::max(worst, layer.max_violation);
  return worst;
}

StepNumbers PendingNumbers::get() const {
  if (done_) done_->synchronize();
  StepNumbers numbers = known_;
  // What the device has come to since the step before was asked for.
  if (mesh_ != nullptr) {
    const double waited_s = mesh_->waited_s();
    numbers.waited_s = waited_s - std::exchange(*waited_told_s_, waited_s);
  }
  const float* head = host_.const_data_ptr<float>();
  numbers.loss = head[0];
  numbers.balance_loss = head[1];
  numbers.gradient_norm = head[2];
  numbers.skipped = !std::isfinite(head[3]);
  numbers.mtp_loss = head[4];
  if (!statistics_->empty())
    numbers.layers = statistics_->unpack(host_.narrow(0, kHead, host_.size(0) - kHead), num_micro_);
  return numbers;
}

TrainStep::TrainStep(const config::RunConfig& config, nn::Decoder& decoder, AdamW& optimizer,
                     std::unique_ptr<ops::GraphRecorder> recorder)
    : config_(config),
      decoder_(decoder),
      optimizer_(optimizer),
      statistics_(config.model, decoder.device()),
      recorder_(std::move(recorder)) {
  options_.recompute = recompute_of(config.train.recompute);
  options_.recompute_layers = config.train.recompute_layers;
  options_.with_losses = true;
  options_.with_mtp = config.model.mtp.depth > 0;
  options_.observer = &statistics_;
  if (!recorder_ && config.train.cuda_graph) recorder_ = ops::make_graph_recorder(decoder.device());
  const config::MoeConfig& moe = config.model.moe;
  if (moe.balance.bias_rate > 0 && moe.balance.bias_rule == "forecast") {
    const moe::ForecastBias rule({.rate = moe.balance.bias_rate}, moe.experts);
    bias_rules_.assign(static_cast<size_t>(statistics_.num_layers()), rule);
  }
}

void TrainStep::join(const parallel::Mesh& mesh, parallel::DataParallel& shares, const nn::LoadSum* load_sum,
                     const nn::LoadSum* sequence_sum) {
  mesh_ = &mesh;
  shares_ = &shares;
  options_.load_sum = load_sum != nullptr ? load_sum : sequence_sum;
  options_.sequence_sum = sequence_sum;
}

TrainStep::SumOfRanks TrainStep::begin_sum(const MicroLosses& losses) {
  SumOfRanks sum;
  sum.all =
      at::cat({at::stack({losses.loss, losses.balance, losses.mtp}), statistics_.packed().reshape({-1})});
  sum.pending = mesh_->data().all_reduce(sum.all);
  return sum;
}

void TrainStep::finish_sum(SumOfRanks& sum, MicroLosses& losses) {
  const at::Tensor packed = statistics_.packed();
  sum.pending.wait();
  if (decoder_.pieces() != nullptr) mesh_->on(parallel::Axis::pp).all_reduce(sum.all).wait();
  losses = {sum.all[0], sum.all[1], sum.all[2]};
  packed.copy_(sum.all.narrow(0, 3, packed.numel()).view(packed.sizes()));
}

void TrainStep::meet(const Work& work, MicroLosses& losses) {
  const telemetry::Span span("communication", "train");
  if (!losses.loss.defined()) losses.loss = at::zeros_like(losses.balance);  // the last stage has it
  // These are short, and travel while the last gradients do.
  SumOfRanks sum = begin_sum(losses);
  work.ahead.begin();
  shares_->finish_gradients();
  if (decoder_.pieces() != nullptr &&
      nn::Decoder::is_embedding_shared(config_.model, decoder_.pieces()->stages))
    parallel::sum_shared_embedding(*mesh_, *shares_);
  finish_sum(sum, losses);
}

at::Tensor TrainStep::total_loss(MicroLosses& losses, const nn::DecoderOutput& output, double scale,
                                 int64_t num_micro) const {
  at::Tensor total = losses.loss;
  if (output.balance_loss.defined()) {
    total = total + output.balance_loss / static_cast<double>(num_micro);
    losses.balance = output.balance_loss.detach();
  }
  if (output.mtp_hidden_TD.defined()) {
    const at::Tensor mtp = decoder_.loss(output.mtp_hidden_TD, output.mtp_targets_T, scale);
    total = total + mtp * config_.model.mtp.loss_weight;
    losses.mtp = mtp.detach();
  }
  return total;
}

const tune::PipelineSchedule& TrainStep::schedule_for(int64_t num_micro) {
  if (schedule_ && schedule_->micro_batches == num_micro) return *schedule_;
  schedule_ = mesh_ == nullptr ? tune::make_turns(num_micro, 1) : parallel::schedule_of(config_, num_micro);
  return *schedule_;
}

parallel::PieceResult TrainStep::forward(const Work& work, const tune::PipelineTask& task,
                                         const at::Tensor& input, MicroLosses& losses) {
  std::optional<telemetry::Span> span;  // passes in turns have spans of their own
  if (schedule_->together == 1) span.emplace("forward", "train", task.micro_batch);
  if (quantisation_ != nullptr) quantisation_->begin_micro(task.micro_batch);
  const nn::TokenBatch tokens = work.tokens(task.micro_batch);
  mark(energy::Phase::kForward);
  const ops::WeightGradients::Collect collect(
      schedule_->kind == tune::PipelineKind::zero_bubble ? &weights_[task.micro_batch] : nullptr);
  const nn::DecoderOutput output = decoder_.run_piece(task.chunk, tokens, input, options_);
  const int64_t num_micro = work.num_micro * num_ranks();
  MicroLosses micro;
  parallel::PieceResult result;
  result.stream = output.stream_TD;
  if (output.hidden_TD.defined()) {
    micro.loss = decoder_.loss(output.hidden_TD, tokens.targets_T, work.scale);
    result.loss = total_loss(micro, output, work.scale, num_micro);
    losses.loss = losses.loss.defined() ? losses.loss + micro.loss.detach() : micro.loss.detach();
  } else if (output.balance_loss.defined()) {
    result.loss = output.balance_loss / static_cast<double>(num_micro);
    micro.balance = output.balance_loss.detach();
  }
  if (micro.balance.defined()) losses.balance += micro.balance / static_cast<double>(num_micro);
  if (micro.mtp.defined()) losses.mtp += micro.mtp;
  return result;
}

void TrainStep::backward(const tune::PipelineTask& task, bool is_last, const std::function<void()>& pass) {
  const telemetry::Span span("backward", "train", task.micro_batch);
  mark(energy::Phase::kBackward);
  if (shares_ == nullptr) return pass();
  const nn::DecoderPieces* const pieces = decoder_.pieces();
  if (is_last && pieces != nullptr && pieces->num_chunks() > 1) {
    // The other pieces have all their gradients.
    const int piece = pieces->piece_of(task.chunk);
    const nn::LayerRange layers = pieces->layers[static_cast<size_t>(piece)];
    shares_->begin_backward(is_last, [piece, layers](const nn::Param& param) {
      const int64_t block = parallel::block_of(param.spec);
      return block == parallel::kOutsideBlocks ? piece == 0 : layers.has(block);
    });
  } else {
    shares_->begin_backward(is_last);
  }
  pass();
  shares_->end_backward();
}

void TrainStep::finish_weights(const tune::PipelineTask& task, bool is_last) {
  const telemetry::Span span("weights", "train", task.micro_batch);
  mark(energy::Phase::kBackward);
  ops::WeightGradients& weights = weights_.at(task.micro_batch);
  shares_->begin_backward(is_last, [&](const nn::Param& param) { return weights.has(param.value); });
  weights.finish();
  shares_->end_backward();
  weights_.erase(task.micro_batch);
}

at::Tensor TrainStep::compute(const Work& work) {
  statistics_.reset();
  weights_.clear();  // of a step that has failed
  MicroLosses losses;
  losses.balance = at::zeros({}, at::TensorOptions().dtype(at::kFloat).device(decoder_.device()));
  losses.mtp = losses.balance.clone();
  if (quantisation_ != nullptr) quantisation_->begin_step(work.step);
  // Here too, so that a recorded step makes the codes again.
  if (int8_experts_ != nullptr) int8_experts_->weights_changed();
  parallel::PipelineWork passes;
  passes.stream_sizes = [&](int64_t micro) { return decoder_.stream_sizes(work.tokens_of(micro)); };
  passes.stream_options = decoder_.stream_options();
  passes.forward = [&](const tune::PipelineTask& task, const at::Tensor& input) {
    return forward(work, task, input, losses);
  };
  passes.backward = [this](const tune::PipelineTask& task, bool is_last, const std::function<void()>& pass) {
    backward(task, is_last, pass);
  };
  passes.differentiates_together = options_.recompute != nn::Recompute::full;
  passes.weight = [this](const tune::PipelineTask& task, bool is_last) { finish_weights(task, is_last); };
  parallel::run_pipeline(schedule_for(work.num_micro), mesh_, passes, config_.parallel.overlap);
  if (mesh_ != nullptr) meet(work, losses);
  const telemetry::Span span("optimizer", "train");
  mark(energy::Phase::kOptimizer);
  const at::NoGradGuard no_grad;
  const AdamW::Clip clip =
      optimizer_.clip(shares_ != nullptr ? shares_->sum_of_squares() : optimizer_.sum_of_squares());
  if (quantisation_ != nullptr) quantisation_->end_step(work.step, clip.scale);
  if (work.scalars.defined()) {
    optimizer_.step(work.scalars, clip.scale);
  } else {
    optimizer_.step(work.learning_rate, work.step, clip.scale);
  }
  if (shares_ != nullptr) {
    work.ahead.end();
    shares_->finish_update();
  }
  if (!bias_rules_.empty()) {
    if (is_finite(clip.scale)) statistics_.update_bias(decoder_.params(), bias_rules_);
  } else if (config_.model.moe.balance.bias_rate > 0 && !statistics_.empty()) {
    statistics_.update_bias(decoder_.params(), config_.model.moe.balance.bias_rate, clip.scale);
  }
  return at::cat({at::stack({losses.loss, losses.balance, clip.norm, clip.scale, losses.mtp}).view({kHead}),
                  statistics_.packed().reshape({-1})});
}

std::string TrainStep::bucket_key(const std::vector<data::Batch>& micro_batches, int64_t num_targets) const {
  // The angles of dynamic scaling follow the longest sequence at hand; the forecasting rule reckons on the
  // host, and noise is drawn there; exchanges with other ranks are begun by the host.
  if (!recorder_ || mesh_ != nullptr || quantisation_ != nullptr || config_.model.rope.scaling == "dynamic" ||
      !bias_rules_.empty())
    return {};
  std::string key = std::to_string(num_targets);
  for (const data::Batch& batch : micro_batches) {
    const int64_t documents = static_cast<int64_t>(batch.cu_seqlens.size()) - 1;
    // Borders of documents that differ from step to step are numbers on the host, which a recording would
    // keep.
    if (documents < 1 || batch.num_tokens() != documents * batch.max_seqlen) return {};
    key += concat(" ", batch.num_sequences, "x", batch.sequence_length, "/", documents);
  }
  return key;
}

at::Tensor TrainStep::run_in_bucket(Bucket& bucket, Work work, std::vector<data::Batch>& micro_batches) {
  const bool is_new = bucket.tokens.empty();
  mark(energy::Phase::kData);
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    if (is_new) {
      nn::TokenBatch tokens = to_device(micro_batches[i], decoder_.device());
      for (at::Tensor* each : {&tokens.tokens_T, &tokens.targets_T, &tokens.positions_T})
        if (each->is_cpu()) *each = each->clone();
      bucket.tokens.push_back(std::move(tokens));
    } else {
      copy_to_device(micro_batches[i], bucket.tokens[i]);
    }
  }
  const at::Tensor scalars = optimizer_.scalars(work.learning_rate, work.step);
  if (is_new) {
    bucket.scalars = at::empty(scalars.sizes(), scalars.options().device(decoder_.device()));
    bucket.numbers = at::empty({kHead + statistics_.packed().numel()}, bucket.scalars.options());
  }
  bucket.scalars.copy_(decoder_.device().is_cpu() ? scalars : scalars.pin_memory(), /*non_blocking=*/true);
  work.scalars = bucket.scalars;
  work.tokens = [&bucket](int64_t micro) { return bucket.tokens[static_cast<size_t>(micro)]; };
  const auto body = [this, &bucket, work] { bucket.numbers.copy_(compute(work)); };
  if (bucket.num_steps >= kStepsBeforeRecording && recorder_ && !bucket.graph) {
    const telemetry::Span span("record", "train");
    // No marks inside: they would become part of the recording.
    PhaseTimer* const phases = std::exchange(phases_, nullptr);
    try {
      bucket.graph = recorder_->record(body);
      bucket.angles = decoder_.angles();  // stays when a longer table takes its place
    } catch (const std::exception& error) {
      const std::string what = error.what();
      log_warn("the step cannot be recorded as a graph and is run as without train.cuda_graph: ",
               what.substr(0, what.find('\n')));
      optimizer_.release_gradients();
      recorder_.reset();
    }
    phases_ = phases;
  }
  if (bucket.graph) {
    const telemetry::Span span("replay", "train");
    mark(energy::Phase::kStep);
    bucket.graph->replay();
    ++num_replayed_;
  } else {
    body();
    ++bucket.num_steps;
  }
  return bucket.numbers;
}

PendingNumbers TrainStep::run(int64_t step, std::vector<data::Batch>& micro_batches,
                              const std::optional<StepTotals>& totals, const StepAhead& ahead) {
  MOEBIUS_CHECK(mesh_ == nullptr || totals, "a rank of several runs step ", step,
                " without knowing the others");
  PendingNumbers pending;
  const auto num_micro = static_cast<int64_t>(micro_batches.size());
  pending.known_.step = step;
  const StepTotals counted = totals ? *totals : totals_of(micro_batches);
  pending.known_.num_targets = counted.num_targets;
  pending.known_.num_tokens = counted.num_tokens;
  pending.known_.learning_rate =
      config_.optimizer.lr * schedule_factor(config_.schedule, step, config_.train.steps);
  pending.statistics_ = &statistics_;
  pending.num_micro_ = num_micro * num_ranks();

  const double waited_before = mesh_ == nullptr ? 0 : mesh_->waited_s();
  Work work;
  work.num_micro = num_micro;
  work.scale = 1.0 / static_cast<double>(std::max<int64_t>(pending.known_.num_targets, 1));
  work.learning_rate = pending.known_.learning_rate;
  work.step = step;
  work.ahead = ahead;
  at::Tensor numbers;
  if (const std::string key = bucket_key(micro_batches, pending.known_.num_targets); !key.empty()) {
    numbers = run_in_bucket(buckets_[key], work, micro_batches);
  } else {
    const int64_t parts = mesh_ == nullptr ? 1 : mesh_->layout().size(parallel::Axis::cp);
    work.tokens_of = [&micro_batches, parts](int64_t micro) {
      return micro_batches[static_cast<size_t>(micro)].num_tokens() / parts;
    };
    work.tokens = [&](int64_t micro) {
      mark(energy::Phase::kData);
      return to_device(micro_batches[static_cast<size_t>(micro)], decoder_.device(), mesh_,
                       options_.with_mtp);
    };
    numbers = compute(work);
  }
  if (int8_experts_ != nullptr) int8_experts_->weights_changed();
  if (numbers.is_cpu()) {
    if (mesh_ != nullptr) pending.known_.waited_s = mesh_->waited_s() - waited_before;
    pending.host_ = recorder_ ? numbers.clone() : numbers;
    mark(energy::Phase::kIdle);
    return pending;
  }
  pending.host_ = at::empty(numbers.sizes(), at::TensorOptions().dtype(at::kFloat).pinned_memory(true));
  pending.host_.copy_(numbers, /*non_blocking=*/true);
  const c10::impl::VirtualGuardImpl guard(decoder_.device().type());
  pending.done_.emplace(decoder_.device().type());
  pending.done_->record(guard.getStream(decoder_.device()));
  if (mesh_ != nullptr) {
    pending.mesh_ = mesh_;
    pending.waited_told_s_ = waited_told_s_;
  }
  mark(energy::Phase::kIdle);
  return pending;
}

std::string TrainStep::find_non_finite(std::vector<data::Batch>& micro_batches) {
  // Ranks may find different things, so none of them waits for parameters of another from here on.
  const Gathered gathered(decoder_, shares_);
  // Where passes exchange values every rank goes through all of them, whatever it has found before.
  const auto is_split = [this](parallel::Axis axis) { return mesh_->layout().size(axis) > 1; };
  const bool together = mesh_ != nullptr && (is_split(parallel::Axis::tp) || is_split(parallel::Axis::ep) ||
                                             is_split(parallel::Axis::pp) || is_split(parallel::Axis::cp));
  std::string found;
  const auto look = [&](const at::Tensor& value, const auto&... name) {
    if (found.empty() && value.defined() && !is_finite(value)) found = concat(name...);
  };
  const auto is_done = [&] { return !together && !found.empty(); };
  for (const nn::Param& param : decoder_.params().params()) look(param.value, "parameter ", param.spec.name);
  if (is_done()) return found;
  // Over stages no gradients are looked at: that would take the schedule again.
  const at::AutoGradMode with_gradients(decoder_.pieces() == nullptr);
  nn::ForwardOptions options;
  options.with_losses = true;
  options.with_mtp = options_.with_mtp;
  options.probe = [&](const std::string& name, const at::Tensor& value) { look(value, "output of ", name); };
  const double scale = 1.0 / static_cast<double>(std::max<int64_t>(totals_of(micro_batches).num_targets, 1));
  for (data::Batch& batch : micro_batches) {
    const nn::TokenBatch tokens = to_device(batch, decoder_.device(), mesh_, options.with_mtp);
    const nn::DecoderOutput output = decoder_.forward(tokens, options);
    if (is_done()) return found;
    if (!output.hidden_TD.defined()) continue;
    MicroLosses losses;
    losses.loss = decoder_.loss(output.hidden_TD, tokens.targets_T, scale);
    look(losses.loss, "loss");
    if (is_done()) return found;
    const at::Tensor loss = total_loss(losses, output, scale, 1);
    look(losses.balance, "balance loss");
    look(losses.mtp, "loss of multi-token prediction");
    if (is_done()) return found;
    if (decoder_.pieces() == nullptr) loss.backward();
  }
  if (!found.empty()) {
    optimizer_.release_gradients();
    return found;
  }
  // Backward runs from the last layer to the first, so the last declared is the first that broke.
  auto& params = decoder_.params().params();
  for (auto param = params.rbegin(); param != params.rend(); ++param) {
    const at::Tensor& grad = param->value.grad();
    if (grad.defined()) look(grad, "gradient of ", param->spec.name);
    if (!found.empty()) break;
  }
  optimizer_.release_gradients();
  if (quantisation_ != nullptr) quantisation_->release_gradients();
  return found;
}

}  // namespace moebius::train
