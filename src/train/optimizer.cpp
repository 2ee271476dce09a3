#include "train/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

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

int64_t moment_bytes(const nn::ParamSpec& spec, const std::string& state_dtype) {
  const at::ScalarType dtype = moment_dtype(spec, state_dtype);
  const int64_t count = spec.num_elements();
  const int64_t scales = dtype == at::kByte ? 4 * ops::moment_blocks(count) : 0;
  return count * static_cast<int64_t>(c10::elementSize(dtype)) + scales;
}

AdamW::AdamW(const config::OptimizerConfig& config, nn::ParamTable& params) : config_(config) {
  const at::NoGradGuard no_grad;
  for (nn::Param& param : params.params()) {
    if (param.spec.is_buffer) continue;
    Slot slot;
    slot.param = &param;
    const bool is_fp32 = param.value.scalar_type() == at::kFloat;
    const at::ScalarType dtype = moment_dtype(param.spec, config.state_dtype);
    for (at::Tensor* moment : {&slot.m, &slot.v})
      *moment = at::zeros_like(param.value, param.value.options().dtype(dtype));
    if (dtype == at::kByte)
      for (at::Tensor* scale : {&slot.m_scale, &slot.v_scale})
        *scale =
            at::zeros({ops::moment_blocks(param.value.numel())}, param.value.options().dtype(at::kFloat));
    if (!is_fp32 && config.master_weights) slot.master = param.value.detach().to(at::kFloat);
    slot.lr_scale = param.spec.name == "embedding" ? config.embedding_lr_scale : 1;
    slot.weight_decay = param.spec.decays ? config.weight_decay : 0;
    slots_.push_back(std::move(slot));
  }
}

AdamW::Clip AdamW::clip() const {
  std::vector<at::Tensor> grads;
  for (const Slot& slot : slots_)
    if (slot.param->value.grad().defined()) grads.push_back(slot.param->value.grad());
  Clip clip;
  clip.norm = ops::global_norm(grads);
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
    const at::Tensor& grad = slot.param->value.grad();
    if (!grad.defined()) continue;
    states.push_back({slot.param->value, slot.master, grad, slot.m, slot.v, lr * slot.lr_scale,
                      slot.weight_decay, static_cast<int64_t>(i), slot.m_scale, slot.v_scale});
  }
  ops::adamw_step(states, options(step), clip_scale, scalars);
  release_gradients();
}

void AdamW::release_gradients() {
  for (Slot& slot : slots_) slot.param->value.mutable_grad().reset();
}

std::vector<ckpt::NamedTensor> AdamW::tensors() const {
  std::vector<ckpt::NamedTensor> named;
  for (const Slot& slot : slots_) {
    const std::string& name = slot.param->spec.name;
    named.push_back({"m." + name, slot.m});
    named.push_back({"v." + name, slot.v});
    if (slot.m_scale.defined()) {
      named.push_back({"m_scale." + name, slot.m_scale});
      named.push_back({"v_scale." + name, slot.v_scale});
    }
    if (slot.master.defined()) named.push_back({"master." + name, slot.master});
  }
  return named;
}

}  // namespace moebius::train
