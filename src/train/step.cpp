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

constexpr int64_t kHead = 4;  // loss, balance loss, norm, scale

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
  if (!statistics_->empty())
    numbers.layers = statistics_->unpack(host_.narrow(0, kHead, host_.size(0) - kHead), num_micro_);
  return numbers;
}

TrainStep::TrainStep(const config::RunConfig& config, nn::Decoder& decoder, AdamW& optimizer)
    : config_(config), decoder_(decoder), optimizer_(optimizer), statistics_(config.model, decoder.device()) {
  options_.recompute = recompute_of(config.train.recompute);
  options_.with_losses = true;
  options_.observer = &statistics_;
}

std::pair<at::Tensor, at::Tensor> TrainStep::accumulate(data::Batch& batch, double scale, int64_t num_micro) {
  const nn::TokenBatch tokens = to_device(batch, decoder_.device());
  at::Tensor loss, total;
  nn::DecoderOutput output;
  {
    const telemetry::Span span("forward", "train", batch.micro);
    output = decoder_.forward(tokens, options_);
    loss = decoder_.loss(output.hidden_TD, tokens.targets_T, scale);
    total = loss;
    if (output.balance_loss.defined()) total = total + output.balance_loss / static_cast<double>(num_micro);
  }
  const telemetry::Span span("backward", "train", batch.micro);
  total.backward();
  return {loss.detach(), output.balance_loss.defined() ? output.balance_loss.detach() : at::Tensor()};
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
  at::Tensor loss, balance = at::zeros({}, at::TensorOptions().dtype(at::kFloat).device(decoder_.device()));
  for (data::Batch& batch : micro_batches) {
    const auto [micro_loss, micro_balance] = accumulate(batch, scale, num_micro);
    loss = loss.defined() ? loss + micro_loss : micro_loss;
    if (micro_balance.defined()) balance += micro_balance / static_cast<double>(num_micro);
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
  const at::Tensor numbers = at::cat(
      {at::stack({loss, balance, clip.norm, clip.scale}).view({kHead}), statistics_.packed().reshape({-1})});
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
  options.probe = [&](const std::string& name, const at::Tensor& value) {
    if (found.empty() && !is_finite(value)) found = "output of " + name;
  };
  const double scale = 1.0 / static_cast<double>(std::max<int64_t>(count_targets(micro_batches), 1));
  for (data::Batch& batch : micro_batches) {
    const nn::TokenBatch tokens = to_device(batch, decoder_.device());
    const nn::DecoderOutput output = decoder_.forward(tokens, options);
    if (!found.empty()) return found;
    at::Tensor loss = decoder_.loss(output.hidden_TD, tokens.targets_T, scale);
    if (!is_finite(loss)) return "loss";
    if (output.balance_loss.defined()) {
      if (!is_finite(output.balance_loss)) return "balance loss";
      loss = loss + output.balance_loss;
    }
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
