#include "train/step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "telemetry/trace.h"
#include "train/device_batch.h"
#include "train/schedule.h"

namespace moebius::train {
namespace {

constexpr int64_t kHead = 5;  // loss, balance loss, norm, scale, loss of the tokens after next

int64_t count_targets(const std::vector<data::Batch>& micro_batches) {
  int64_t count = 0;
  for (const data::Batch& batch : micro_batches) count += batch.num_targets;
  return count;
}

bool is_finite(const at::Tensor& tensor) {
  return at::isfinite(tensor).all().item<bool>();
}

}  // namespace

nn::Recompute recompute_of(const std::string& word) {
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

TrainStep::TrainStep(const config::RunConfig& config, nn::Decoder& decoder, AdamW& optimizer)
    : config_(config), decoder_(decoder), optimizer_(optimizer), statistics_(config.model, decoder.device()) {
  options_.recompute = recompute_of(config.train.recompute);
  options_.with_losses = true;
  options_.with_mtp = config.model.mtp.depth > 0;
  options_.observer = &statistics_;
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

TrainStep::MicroLosses TrainStep::accumulate(data::Batch& batch, double scale, int64_t num_micro) {
  const nn::TokenBatch tokens = to_device(batch, decoder_.device());
  MicroLosses losses;
  at::Tensor total;
  nn::DecoderOutput output;
  {
    const telemetry::Span span("forward", "train", batch.micro);
    output = decoder_.forward(tokens, options_);
    losses.loss = decoder_.loss(output.hidden_TD, tokens.targets_T, scale);
    total = total_loss(losses, output, scale, num_micro);
  }
  const telemetry::Span span("backward", "train", batch.micro);
  total.backward();
  losses.loss = losses.loss.detach();
  return losses;
}

PendingNumbers TrainStep::run(int64_t step, std::vector<data::Batch>& micro_batches) {
  PendingNumbers pending;
  const auto num_micro = static_cast<int64_t>(micro_batches.size());
  pending.known_.step = step;
  pending.known_.num_targets = count_targets(micro_batches);
  for (const data::Batch& batch : micro_batches) pending.known_.num_tokens += batch.num_tokens();
  pending.known_.learning_rate =
      config_.optimizer.lr * schedule_factor(config_.schedule, step, config_.train.steps);
  pending.statistics_ = &statistics_;
  pending.num_micro_ = num_micro;

  statistics_.reset();
  const double scale = 1.0 / static_cast<double>(std::max<int64_t>(pending.known_.num_targets, 1));
  at::Tensor loss, balance = at::zeros({}, at::TensorOptions().dtype(at::kFloat).device(decoder_.device())),
                   mtp = balance.clone();
  for (data::Batch& batch : micro_batches) {
    const MicroLosses micro = accumulate(batch, scale, num_micro);
    loss = loss.defined() ? loss + micro.loss : micro.loss;
    if (micro.balance.defined()) balance += micro.balance / static_cast<double>(num_micro);
    if (micro.mtp.defined()) mtp += micro.mtp;
  }
  AdamW::Clip clip;
  {
    const telemetry::Span span("optimizer", "train");
    const at::NoGradGuard no_grad;
    clip = optimizer_.clip();
    optimizer_.step(pending.known_.learning_rate, step, clip.scale);
    if (config_.model.moe.balance.bias_rate > 0 && !statistics_.empty())
      statistics_.update_bias(decoder_.params(), config_.model.moe.balance.bias_rate, clip.scale);
  }
  const at::Tensor numbers = at::cat({at::stack({loss, balance, clip.norm, clip.scale, mtp}).view({kHead}),
                                      statistics_.packed().reshape({-1})});
  if (numbers.is_cpu()) {
    pending.host_ = numbers;
    return pending;
  }
  pending.host_ = at::empty(numbers.sizes(), at::TensorOptions().dtype(at::kFloat).pinned_memory(true));
  pending.host_.copy_(numbers, /*non_blocking=*/true);
  const c10::impl::VirtualGuardImpl guard(decoder_.device().type());
  pending.done_.emplace(decoder_.device().type());
  pending.done_->record(guard.getStream(decoder_.device()));
  return pending;
}

std::string TrainStep::find_non_finite(std::vector<data::Batch>& micro_batches) {
  for (const nn::Param& param : decoder_.params().params())
    if (!is_finite(param.value)) return "parameter " + param.spec.name;
  std::string found;
  nn::ForwardOptions options;
  options.with_losses = true;
  options.with_mtp = options_.with_mtp;
  options.probe = [&](const std::string& name, const at::Tensor& value) {
    if (found.empty() && !is_finite(value)) found = "output of " + name;
  };
  const double scale = 1.0 / static_cast<double>(std::max<int64_t>(count_targets(micro_batches), 1));
  for (data::Batch& batch : micro_batches) {
    const nn::TokenBatch tokens = to_device(batch, decoder_.device());
    const nn::DecoderOutput output = decoder_.forward(tokens, options);
    if (!found.empty()) return found;
    MicroLosses losses;
    losses.loss = decoder_.loss(output.hidden_TD, tokens.targets_T, scale);
    if (!is_finite(losses.loss)) return "loss";
    const at::Tensor loss = total_loss(losses, output, scale, 1);
    if (losses.balance.defined() && !is_finite(losses.balance)) return "balance loss";
    if (losses.mtp.defined() && !is_finite(losses.mtp)) return "loss of multi-token prediction";
    loss.backward();
  }
  // Backward runs from the last layer to the first, so the last declared is the first that broke.
  auto& params = decoder_.params().params();
  for (auto param = params.rbegin(); param != params.rend(); ++param) {
    const at::Tensor& grad = param->value.grad();
    if (grad.defined() && !is_finite(grad)) {
      found = "gradient of " + param->spec.name;
      break;
    }
  }
  optimizer_.release_gradients();
  return found;
}

}  // namespace moebius::train
