#include "train/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/api/moment_codes.h"

namespace moebius::train {
namespace {

// An fp32 parameter among bf16 ones (the router) keeps fp32 moments, and what is too small to matter stays
// exact.
constexpr int64_t kLeastCoded = 4096;

at::ScalarType moment_dtype(const nn::ParamSpec& spec, const std::string& state_dtype) {
  if (spec.is_fp32) return at::kFloat;
  if (state_dtype == "int8") return spec.num_elements() >= kLeastCoded ? at::kByte : at::kFloat;
  return state_dtype == "bf16" ? at::kBFloat16 : at::kFloat;
}

}  // namespace

int64_t moment_bytes(const nn::Param& param, const std::string& state_dtype) {
  const at::ScalarType dtype = moment_dtype(param.spec, state_dtype);
  const int64_t count = param.num_local_elements();
  const int64_t scales = dtype == at::kByte ? 4 * ops::moment_blocks(count) : 0;
  return count * static_cast<int64_t>(c10::elementSize(dtype)) + scales;
}

AdamW::AdamW(const config::OptimizerConfig& config, nn::ParamTable& params) : config_(config) {
  for (nn::Param& param : params.params())
    if (!param.spec.is_buffer) add_slot(param, 0, param.value.numel(), param.value.detach(), {});
}

AdamW::AdamW(const config::OptimizerConfig& config, const std::vector<parallel::OwnedSlice>& slices)
    : config_(config) {
  for (const parallel::OwnedSlice& slice : slices)
    add_slot(*slice.param, slice.begin, slice.end, slice.value, slice.grad);
}

void AdamW::add_slot(nn::Param& param, int64_t begin, int64_t end, const at::Tensor& value,
                     const at::Tensor& grad) {
  const at::NoGradGuard no_grad;
  Slot slot;
  slot.param = &param;
  slot.begin = begin;
  slot.end = end;
  slot.value = value;
  slot.grad = grad;
  const at::ScalarType dtype = moment_dtype(param.spec, config_.state_dtype);
  for (at::Tensor* moment : {&slot.m, &slot.v}) *moment = at::zeros_like(value, value.options().dtype(dtype));
  if (dtype == at::kByte)
    for (at::Tensor* scale : {&slot.m_scale, &slot.v_scale})
      *scale = at::zeros({ops::moment_blocks(value.numel())}, value.options().dtype(at::kFloat));
  if (value.scalar_type() != at::kFloat && config_.master_weights) slot.master = value.to(at::kFloat);
  slot.lr_scale = param.spec.name == "embedding" ? config_.embedding_lr_scale : 1;
  slot.weight_decay = param.spec.decays ? config_.weight_decay : 0;
  slots_.push_back(std::move(slot));
}

at::Tensor AdamW::sum_of_squares() const {
  std::vector<at::Tensor> grads;
  for (const Slot& slot : slots_)
    if (grad_of(slot).defined()) grads.push_back(grad_of(slot));
  return ops::sum_of_squares(grads);
}

AdamW::Clip AdamW::clip(const at::Tensor& sum_of_squares) const {
  Clip clip;
  clip.norm = sum_of_squares.sqrt();
  clip.scale = ops::clip_scale(clip.norm, config_.grad_clip);
  return clip;
}

void AdamW::step(double lr, int64_t step, const at::Tensor& clip_scale) {
  apply(lr, step, {}, clip_scale);
}

void AdamW::step(const at::Tensor& scalars, const at::Tensor& clip_scale) {
  apply(0, 1, scalars, clip_scale);
}

at::Tensor AdamW::scalars(double lr, int64_t step) const {
  std::vector<ops::AdamWRate> rates;
  for (const Slot& slot : slots_) rates.push_back({lr * slot.lr_scale, slot.weight_decay});
  return ops::adamw_scalars(rates, options(step));
}

void AdamW::apply(double lr, int64_t step, const at::Tensor& scalars, const at::Tensor& clip_scale) {
  std::vector<ops::AdamWState> states;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    at::Tensor grad = grad_of(slot);
    if (!grad.defined()) continue;
    grad = grad.view(slot.value.sizes());
    states.push_back({slot.value, slot.master, grad, slot.m, slot.v, lr * slot.lr_scale, slot.weight_decay,
                      static_cast<int64_t>(i), slot.m_scale, slot.v_scale});
  }
  ops::adamw_step(states, options(step), clip_scale, scalars);
  release_gradients();
}

void AdamW::release_gradients() {
  for (Slot& slot : slots_) slot.param->value.mutable_grad().reset();
}

std::vector<AdamW::State> AdamW::state() const {
  std::vector<State> all;
  for (const Slot& slot : slots_) {
    const auto add = [&](const char* kind, const at::Tensor& tensor, int64_t unit) {
      if (tensor.defined())
        all.push_back({kind + slot.param->spec.name, slot.param, slot.begin, slot.end, unit, tensor});
    };
    add("m.", slot.m, 1);
    add("v.", slot.v, 1);
    add("m_scale.", slot.m_scale, kernels::kMomentBlock);
    add("v_scale.", slot.v_scale, kernels::kMomentBlock);
    add("master.", slot.master, 1);
  }
  return all;
}

std::vector<ckpt::NamedTensor> AdamW::tensors() const {
  std::vector<ckpt::NamedTensor> named;
  for (State& each : state()) named.push_back({std::move(each.name), each.tensor});
  return named;
}

}  // namespace moebius::train
