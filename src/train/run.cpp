#include "train/run.h"

#include <ATen/ops/empty.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/parallel.h"
#include "base/units.h"
#include "config/dump.h"
#include "moe/moe_feed_forward.h"
#include "ops/device.h"
#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "parallel/shared_embedding.h"
#include "telemetry/trace.h"
#include "train/flops.h"
#include "train/model_files.h"
#include "train/sample.h"
#include "tune/layer_split.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;

// A host that waits for the device longer than this was held up by it, not by the way there and back.
constexpr double kHeldUpSeconds = 0.0005;

std::unique_ptr<nn::Decoder> initial_model(const config::RunConfig& config, const TrainOptions& options) {
  std::unique_ptr<nn::Decoder> model = make_model(config, options.device, options.mesh);
  if (!config.train.initial_weights.empty() && options.mode != RunMode::resume) {
    const fs::path checkpoint = load_initial_weights(config, *model);
    if (is_first(options)) keep_carried(checkpoint.parent_path().parent_path(), options.run_dir);
  }
  return model;
}

// The processes of the run share the model; null where there is one.
std::unique_ptr<parallel::DataParallel> shares_of(const TrainOptions& options, nn::Decoder& decoder) {
  if (options.mesh == nullptr) return nullptr;
  const config::ParallelConfig& config = options.config.parallel;
  parallel::DataParallelOptions how;
  how.zero_stage = config.zero_stage;
  how.bucket_bytes =
      parallel::bucket_bytes_for(decoder.params(), static_cast<int64_t>(config.bucket_mb * 1e6));
  if (nn::Decoder::is_embedding_shared(options.config.model, options.mesh->layout().size(parallel::Axis::pp)))
    parallel::share_embedding(*options.mesh, how);
  auto shares = std::make_unique<parallel::DataParallel>(
      decoder.params(), parallel::data_axes(*options.mesh, config.zero_stage), how);
  decoder.set_gate(shares.get());
  return shares;
}

AdamW optimizer_of(const config::OptimizerConfig& config, nn::ParamTable& params,
                   const parallel::DataParallel* shares) {
  return shares != nullptr ? AdamW(config, shares->slices()) : AdamW(config, params);
}

void log_shares(const parallel::DataParallel& shares, const AdamW& optimizer, bool in_stages) {
  const parallel::DataParallel::Bytes held = shares.held_bytes();
  int64_t state_bytes = 0;
  for (const AdamW::State& state : optimizer.state())
    state_bytes += static_cast<int64_t>(state.tensor.nbytes());
  log_info(in_stages ? "the first" : "each", " process holds ", format_bytes(held.parameters),
           " of parameters, ", format_bytes(held.gradients), " of gradients and ", format_bytes(state_bytes),
           " of optimizer state between steps (parallel.zero_stage = ", shares.zero_stage(), ")");
}

// "pp 1, dp 0": the place of this process on axes of several ranks.
std::string where_is(const parallel::Mesh& mesh) {
  std::string text;
  for (const parallel::Axis axis : {parallel::Axis::pp, parallel::Axis::dp, parallel::Axis::fsdp,
                                    parallel::Axis::cp, parallel::Axis::tp, parallel::Axis::ep})
    if (mesh.layout().size(axis) > 1)
      text += concat(text.empty() ? "" : ", ", parallel::name_of(axis), " ",
                     mesh.layout().index(axis, mesh.rank()));
  return text;
}

void log_schedule(const tune::PipelineSchedule& schedule, const config::RunConfig& config,
                  const nn::DecoderPieces& pieces) {
  std::string layers;
  std::vector<int64_t> counts;
  for (const nn::LayerRange& range : pieces.layers) {
    counts.push_back(range.end - range.begin);
    layers += concat(" ", counts.back());
  }
  const std::vector<double> flops = tune::forward_flops(config.model, config.train.sequence, counts);
  const double idle =
      tune::timeline_of(schedule, tune::PipelineTimes::proportional_to(schedule, flops)).bubble;
  log_info("pipeline: ", tune::name_of(schedule.kind), ", layers", layers, ", ", schedule.micro_batches,
           " micro-batches; stages idle ", format_fixed(100 * idle, 1),
           " % of a step by the arithmetic of their layers");
}

// Of the whole model, wherever its layers are.
int64_t num_parameters(const nn::Decoder& decoder) {
  if (decoder.pieces() == nullptr) return decoder.params().num_elements();
  return moe::make_decoder(decoder.config())->params().num_elements();
}

// The number of the first process: a word that all processes know and that no other run has used here.
std::string agreed_word(const parallel::Mesh& mesh) {
  const at::Tensor number = at::empty({1}, at::kLong).fill_(static_cast<int64_t>(::getpid()));
  mesh.world().broadcast(number, 0).wait();
  return std::to_string(number.item<int64_t>());
}

}  // namespace

DeviceName name_of(at::Device device) {
  if (!device.is_cuda()) return {};
  kernels::DeviceInfo info{};
  if (!ops::cuda_plugin()->device_info(device.index(), &info)) return {"cuda", {}};
  return {info.name, info.pci_bus_id};
}

energy::powerd::LiveOptions governor_options(const config::EnergyConfig& config,
                                             const std::string& gpu_name) {
  energy::powerd::LiveOptions options;
  options.mode = energy::clocks::mode_named(config.governor);
  options.epsilon = config.governor_epsilon;
  options.fixed_mhz = static_cast<int>(config.governor_mhz);
  options.profile = config.governor_profile;
  options.socket = config.governor_socket;
  options.gpu_name = gpu_name;
  return options;
}

bool is_first(const TrainOptions& options) {
  return options.mesh == nullptr || options.mesh->is_first();
}

int64_t batch_parts(const TrainOptions& options) {
  return options.mesh == nullptr ? 1 : options.mesh->layout().batch_parts();
}

Run::Run(const TrainOptions& options, const config::RunConfig& config, const data::Sources& sources,
         const ckpt::RunLock* lock, telemetry::TrainMetrics& metrics)
    : options_(options),
      config_(config),
      sources_(sources),
      model_(initial_model(config, options)),
      shares_(shares_of(options, *model_)),
      optimizer_(optimizer_of(config.optimizer, model_->params(), shares_.get())),
      quantisation_(Quantisation::attach(config, *model_)),
      int8_experts_(Int8Experts::attach(config, *model_)),
      step_(config_, *model_, optimizer_),
      metrics_(metrics) {
  ckpt::AsyncCheckpointer::Options how{.save = {.keep = config.checkpoint.keep},
                                       .background = config.checkpoint.background};
  if (options.mesh != nullptr)
    how.writers = {.rank = options.mesh->rank(),
                   .count = options.mesh->layout().world(),
                   .attempt = agreed_word(*options.mesh),
                   .timeout_s = config.parallel.timeout_s};
  if (lock != nullptr) {
    checkpointer_.emplace(*lock, how);
  } else {
    checkpointer_.emplace(options.run_dir, how);
  }
  if (int8_experts_) step_.follow(*int8_experts_);
  if (options.mesh == nullptr) {
    groups_ = {model_group(*model_), {kOptimizerGroup, optimizer_.tensors()}};
    if (quantisation_) {
      step_.quantise(*quantisation_);
      for (ckpt::TensorGroup& group : quantisation_->groups()) groups_.push_back(std::move(group));
    }
  } else {
    log_shares(*shares_, optimizer_, model_->pieces() != nullptr);
    state_.emplace(pieces_of(*model_, *shares_, optimizer_), options.mesh->world());
    // With train.micro_batch = 0 a micro-batch is the whole batch, which the ranks share; those of a context
    // axis share every one, and its sequences.
    parallel::Communicator& context = options.mesh->on(parallel::Axis::cp);
    if (context.size() > 1) sequence_sum_.emplace(context);
    if (options.config.train.micro_batch == 0) load_sum_.emplace(options.mesh->data());
    step_.join(*options.mesh, *shares_, load_sum_ ? &*load_sum_ : nullptr,
               sequence_sum_ ? &*sequence_sum_ : nullptr);
  }
  if (!sources.validation.empty())
    validation_.emplace(sources.validation, sources.tokenizer, config.model.vocab, config.train.sequence,
                        config.train.micro_batch);
}

void Run::restore(const ckpt::Checkpoint& checkpoint) {
  if (state_) {
    state_->load(checkpoint);
    shares_->slices_changed();
  } else {
    checkpoint.load(groups_);
    if (quantisation_) quantisation_->quantiser().restored();
    if (int8_experts_) int8_experts_->weights_changed();
  }
  restore_bias_rules(checkpoint);
  first_step_ = checkpoint.step();
  saved_step_ = first_step_;
  log_info("resuming from step ", first_step_, " (", checkpoint.path().string(), ")");
}

// A checkpoint of a run with another rule has none: they begin anew.
void Run::restore_bias_rules(const ckpt::Checkpoint& checkpoint) {
  std::vector<moe::ForecastBias>& rules = step_.bias_rules();
  const auto state = nlohmann::json::parse(checkpoint.state_json());
  const auto saved = state.find("bias_rules");
  if (saved == state.end() || saved->size() != rules.size()) return;
  for (size_t i = 0; i < rules.size(); ++i)
    rules[i].set_state({(*saved)[i].at("level").get<std::vector<double>>(),
                        (*saved)[i].at("trend").get<std::vector<double>>()});
}

void Run::settle(bool validates) {
  if (!pending_) return;
  const double asked = steady_seconds();
  const StepNumbers numbers = pending_->get();
  pending_.reset();
  const bool waited = steady_seconds() - asked > kHeldUpSeconds;
  const double seconds = steady_seconds() - step_began_;
  if (validates) validate(numbers.step);
  report_->step(numbers, seconds, waited);
  if (governor_) governor_->after_step(seconds);
  step_began_ = steady_seconds();
  broken_in_a_row_ = numbers.skipped ? broken_in_a_row_ + 1 : 0;
  if (broken_in_a_row_ >= config_.train.max_skipped) fail_when_broken(numbers);
}

void Run::fail_when_broken(const StepNumbers& numbers) {
  const std::string where = step_.find_non_finite(micro_batches_);
  report_->finish();
  throw TrainingFailed(
      concat("the loss or the gradient was not finite in ", broken_in_a_row_, " steps in a row (up to step ",
             numbers.step, "; train.max_skipped); first tensor that is not finite: ",
             where.empty() ? "none when the last step is computed again" : where,
             ". Lower optimizer.lr, raise schedule.warmup_steps, or go on from an earlier checkpoint"));
}

Result<void> Run::save(int64_t step) {
  if (saved_step_ == step) return {};
  const telemetry::Span span("checkpoint", "train");
  const double begin = steady_seconds();
  report_->phases().mark(energy::Phase::kCheckpoint);
  ckpt::CheckpointMeta meta;
  meta.step = step;
  meta.config = config::dump(options_.config, config::DumpStyle::kMinimal);
  nlohmann::json state;
  state["tokens"] = report_->totals().tokens;
  state["seed"] = config_.train.seed;
  state["next_step"] = step + 1;
  for (const moe::ForecastBias& rule : step_.bias_rules())
    state["bias_rules"].push_back({{"level", rule.state().level}, {"trend", rule.state().trend}});
  if (sources_.tokenizer) state["tokenizer_fingerprint"] = sources_.tokenizer->fingerprint();
  meta.state_json = state.dump();
  Result<void> result = state_ ? checkpointer_->save(meta, [this] { return state_->capture(); })
                               : checkpointer_->save(meta, groups_);
  report_->phases().mark(energy::Phase::kIdle);
  saved_step_ = step;
  report_->checkpoint(steady_seconds() - begin);
  checkpoint_stall_seconds_ += checkpointer_->stall_seconds();
  return result;
}

void Run::save_and_go_on(int64_t step) {
  if (const Result<void> result = save(step); !result.ok())
    log_error(result.error().message, " Training goes on.");
}

void Run::validate(int64_t step) {
  if (!validation_ || validation_->num_batches() == 0) return;
  report_->phases().mark(energy::Phase::kEvaluation);
  // With train.micro_batch = 0 the ranks share each batch, so that there are more of them.
  const int64_t shares = options_.config.train.micro_batch == 0 ? batch_parts(options_) : 1;
  const Evaluation evaluation = evaluate_both(*model_, quantisation_.get(), *validation_,
                                              config_.train.eval_batches * shares, options_.mesh);
  report_->phases().mark(energy::Phase::kIdle);
  report_->validation(step, evaluation);
}

void Run::save_at_end(int64_t step) {
  Result<void> result = save(step);
  if (config_.checkpoint.background) {
    if (!result.ok()) log_error(result.error().message);  // of an earlier one
    report_->phases().mark(energy::Phase::kCheckpoint);
    result = checkpointer_->finish();
    report_->phases().mark(energy::Phase::kIdle);
  }
  if (!result.ok()) {
    report_->finish();
    throw UserError(result.error().message);
  }
}

std::string Run::sample() {
  if (!sources_.tokenizer || config_.train.sample_tokens == 0) return {};
  const telemetry::Span span("sample", "train");
  SampleOptions options;
  options.prompt = config_.train.sample_prompt;
  options.generate.max_tokens = config_.train.sample_tokens;
  options.generate.sampling.temperature = config_.train.sample_temperature;
  options.generate.sampling.seed = static_cast<uint64_t>(config_.train.seed);
  if (quantisation_) quantisation_->evaluate_quantised();
  report_->phases().mark(energy::Phase::kEvaluation);
  std::string text = sample_text(*model_, *sources_.tokenizer, options);
  report_->phases().mark(energy::Phase::kIdle);
  return text;
}

// What falls due when `step` is done. Nothing here counts as training time.
void Run::after_step(int64_t step) {
  const auto due = [&](int64_t every) { return every > 0 && step % every == 0; };
  const bool last = step == config_.train.steps;
  const bool validates = due(config_.train.eval_every) || last,
             saves = due(config_.checkpoint.every) && !last;
  const bool samples = due(config_.train.sample_every) && !last;
  // On the CPU the step is done; on a device its numbers are read while the next one runs.
  if (validates || saves || samples || options_.device.is_cpu()) settle(validates);
  if (samples) report_->note(concat("sample at step ", step, ":\n", sample()));
  if (saves) save_and_go_on(step);
  if (samples || saves) step_began_ = steady_seconds();
}

// Of all ranks in one file, which the first writes.
void Run::write_trace() {
  telemetry::stop_trace();
  tracing_ = false;
  const fs::path path = options_.run_dir / "trace.json";
  if (options_.mesh == nullptr) return telemetry::write_trace(path);
  const parallel::Mesh& mesh = *options_.mesh;
  std::vector<std::string> texts{
      telemetry::trace_text(mesh.rank(), concat("rank ", mesh.rank(), ", ", where_is(mesh)))};
  const at::Tensor size = at::empty({1}, at::kLong);
  if (!mesh.is_first()) {
    size.fill_(static_cast<int64_t>(texts[0].size()));
    mesh.world().send(size, 0).wait();
    const at::Tensor bytes = at::empty({static_cast<int64_t>(texts[0].size())}, at::kByte);
    std::memcpy(bytes.mutable_data_ptr(), texts[0].data(), texts[0].size());
    mesh.world().send(bytes, 0).wait();
    return;
  }
  for (int rank = 1; rank < mesh.world().size(); ++rank) {
    mesh.world().receive(size, rank).wait();
    const at::Tensor bytes = at::empty({size.item<int64_t>()}, at::kByte);
    mesh.world().receive(bytes, rank).wait();
    texts.emplace_back(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes());
  }
  telemetry::write_trace(path, texts);
}

void Run::trace(int64_t next_step) {
  if (!options_.trace) return;
  const int64_t first = first_step_ + config_.train.trace_first;
  if (next_step == first) {
    telemetry::start_trace();
    tracing_ = true;
  } else if (tracing_ && next_step == first + config_.train.trace_steps) {
    settle();
    write_trace();
  }
}

TrainResult Run::train(std::unique_ptr<data::BatchSource> batches) {
  const double begin = steady_seconds();
  const int64_t num_micro = config_.train.batch / batch_parts(options_) / config_.train.micro_batch;
  const DeviceName device = name_of(options_.device);
  const int num_ranks = options_.mesh == nullptr ? 1 : options_.mesh->layout().world();
  std::optional<double> peak_flops = peak_bf16_flops(device.name);
  if (peak_flops) *peak_flops *= num_ranks;
  report_.emplace(
      Report::Context{.config = config_,
                      .run_dir = options_.run_dir,
                      .device = options_.device,
                      .device_name = device.name,
                      .first_step = first_step_,
                      .flops_per_token = model_flops_per_token(config_.model, config_.train.sequence),
                      .peak_flops = peak_flops,
                      .pci_bus_id = device.pci_bus_id,
                      .num_ranks = num_ranks,
                      .is_first = is_first(options_)},
      metrics_);
  step_.mark_phases(report_->phases());
  if (config_.energy.governor != "off")
    governor_.emplace(governor_options(config_.energy, device.name), report_->energy().gpu());
  data::Loader loader(
      std::move(batches),
      {.first_step = first_step_, .micro_batches = num_micro, .depth = config_.data.prefetch});
  next_.micro_batches.resize(static_cast<size_t>(num_micro));
  if (model_->pieces() != nullptr) log_schedule(step_.schedule_for(num_micro), config_, *model_->pieces());

  const InterruptGuard interrupts;
  TrainResult result;
  result.steps = first_step_;
  step_began_ = steady_seconds();
  bool stops = false;
  while (result.steps < config_.train.steps && !stops &&
         (options_.mesh != nullptr || !interrupt_requested())) {
    const int64_t step = result.steps + 1;
    trace(step);
    {
      const telemetry::Span span("step", "train", step);
      if (!next_.is_loaded) {
        load(loader);
        begin_agreement();
        end_agreement();
      }
      const std::optional<StepTotals> totals = agreed();
      stops = !totals;
      if (stops) continue;
      std::swap(micro_batches_, next_.micro_batches);
      next_.micro_batches.resize(micro_batches_.size());
      next_.is_loaded = false;
      StepAhead ahead;
      if (options_.mesh != nullptr && step < config_.train.steps)
        ahead = {[&] {
                   load(loader);
                   report_->phases().mark(energy::Phase::kBackward);
                   begin_agreement();
                 },
                 [this] { end_agreement(); }};
      PendingNumbers next = step_.run(step, micro_batches_, totals, ahead);
      settle();
      pending_ = std::move(next);
    }
    result.steps = step;
    after_step(step);
  }
  settle();
  if (tracing_) write_trace();
  result.interrupted = result.steps < config_.train.steps;
  if (config_.checkpoint.at_end) save_at_end(result.steps);
  if (!result.interrupted) result.sample = sample();
  report_->finish();
  if (governor_)
    report_->energy().set_governor(concat(config_.energy.governor, ": ", governor_->description(), ", ",
                                          governor_->num_switches(), " changes of clock"));
  governor_.reset();  // clocks are the driver's again
  report_->write_summary(
      {.interrupted = result.interrupted,
       .wall_seconds = steady_seconds() - begin,
       .data_wait_seconds = loader.wait_seconds(),
       .checkpoint_stall_seconds = checkpoint_stall_seconds_,
       .parameters = num_parameters(*model_),
       .active_parameters = active_linear_weights(config_.model),
       .num_threads = num_threads(),
       .sent = options_.mesh == nullptr ? decltype(Report::Ending::sent)() : options_.mesh->traffic(),
       .waited_s = options_.mesh == nullptr ? decltype(Report::Ending::waited_s)()
                                            : options_.mesh->waited_by_axis()});
  result.train_loss = report_->last().loss;
  result.validation_loss = report_->validation_loss();
  return result;
}

void Run::load(data::Loader& loader) {
  const telemetry::Span wait("data", "train");
  report_->phases().mark(energy::Phase::kData);
  for (data::Batch& batch : next_.micro_batches) std::swap(batch, loader.next());
  next_.is_loaded = true;
}

void Run::begin_agreement() {
  if (options_.mesh == nullptr) return;
  StepTotals own = totals_of(next_.micro_batches);
  if (!options_.mesh->layout().counts_part(options_.mesh->rank())) own = {};
  next_.sums = at::empty({3}, at::kLong);
  int64_t* const each = next_.sums.mutable_data_ptr<int64_t>();
  each[0] = interrupt_requested() ? 1 : 0;
  each[1] = own.num_tokens;
  each[2] = own.num_targets;
  // Signals reach all ranks, but not between the same two steps; ranks of one batch count its tokens once.
  next_.stopping = options_.mesh->world().all_reduce(next_.sums.narrow(0, 0, 1), parallel::ReduceOp::max);
  next_.counting = options_.mesh->data().all_reduce(next_.sums.narrow(0, 1, 2));
}

void Run::end_agreement() {
  next_.counting.wait();
  next_.stopping.wait();
}

std::optional<StepTotals> Run::agreed() const {
  if (options_.mesh == nullptr) return totals_of(next_.micro_batches);
  const int64_t* const each = next_.sums.const_data_ptr<int64_t>();
  if (each[0] != 0) return std::nullopt;
  return StepTotals{each[1], each[2]};
}

}  // namespace moebius::train
