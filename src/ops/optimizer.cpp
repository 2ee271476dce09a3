#include "ops/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/check.h"
#include "kernels/api/moment_codes.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

// Of a moment that began at zero.
float correction(double beta, int64_t step) {
  return static_cast<float>(1.0 - std::pow(beta, static_cast<double>(step)));
}

}  // namespace

at::Tensor sum_of_squares(const std::vector<at::Tensor>& grads) {
  if (grads.empty()) return at::zeros({}, at::kFloat);
  const at::Device device = grads[0].device();
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> kept;  // contiguous ones live until the kernel has been queued
  std::vector<kernels::GradTensor> list;
  kept.reserve(grads.size());
  list.reserve(grads.size());
  for (const at::Tensor& grad : grads) {
    MOEBIUS_CHECK(grad.device() == device, "gradients on ", device, " and ", grad.device());
    if (grad.numel() == 0) continue;
    kept.push_back(grad.contiguous());
    list.push_back({kept.back().const_data_ptr(), grad.numel(), kernel_dtype(grad)});
  }
  at::Tensor sum = at::zeros({}, at::TensorOptions(at::kFloat).device(device));
  if (!list.empty()) {
    kernels::SumSquaresArgs args{list, sum.mutable_data_ptr<float>()};
    kernel_table(device).sum_squares(args, current_stream(device));
  }
  return sum;
}

at::Tensor global_norm(const std::vector<at::Tensor>& grads) {
  const at::NoGradGuard no_grad;
  return sum_of_squares(grads).sqrt_();
}

at::Tensor clip_scale(const at::Tensor& norm, double max_norm) {
  MOEBIUS_CHECK(norm.numel() == 1 && norm.scalar_type() == at::kFloat, "norm is ", norm.sizes(), " ",
                norm.scalar_type());
  at::NoGradGuard no_grad;
  const at::Tensor zero_or_nan = norm - norm;  // infinity - infinity is not a number
  if (max_norm == 0.0) return zero_or_nan + 1.0;
  return norm.reciprocal().mul_(max_norm).clamp_max_(1.0).add_(zero_or_nan);
}

void adamw_step(const std::vector<AdamWState>& states, const AdamWOptions& options,
                const at::Tensor& grad_scale, const at::Tensor& scalars) {
  if (states.empty()) return;
  const at::Device device = states[0].param.device();
  MOEBIUS_CHECK_GE(options.step, 1);
  MOEBIUS_CHECK(
      grad_scale.numel() == 1 && grad_scale.scalar_type() == at::kFloat && grad_scale.device() == device,
      "grad_scale is ", grad_scale.sizes(), " ", grad_scale.scalar_type(), " on ", grad_scale.device());
  std::vector<at::Tensor> kept;
  std::vector<kernels::AdamWTensor> list, coded;
  kept.reserve(states.size());
  list.reserve(states.size());
  for (const AdamWState& s : states) {
    const at::Tensor& param = s.param;
    for (const at::Tensor* t : {&s.param, &s.master, &s.grad, &s.m, &s.v}) {
      if (t == &s.master && !t->defined()) continue;
      MOEBIUS_CHECK(t->defined() && t->sizes() == param.sizes() && t->device() == device, "parameter ",
                    param.sizes(), " on ", device, " with a tensor of ", t->sizes(), " on ", t->device());
      MOEBIUS_CHECK(t == &s.grad || t->is_contiguous(),
                    "a parameter or its state is not contiguous: ", t->sizes());
    }
    MOEBIUS_CHECK(!s.master.defined() || s.master.scalar_type() == at::kFloat, "master is ",
                  s.master.scalar_type());
    MOEBIUS_CHECK(s.m.scalar_type() == s.v.scalar_type(), "moments are ", s.m.scalar_type(), " and ",
                  s.v.scalar_type());
    if (param.numel() == 0) continue;
    kept.push_back(s.grad.contiguous());
    const bool is_coded = s.m.scalar_type() == at::kByte;
    for (const at::Tensor* scale : {&s.m_scale, &s.v_scale})
      MOEBIUS_CHECK(!is_coded || (scale->defined() && scale->numel() == moment_blocks(param.numel()) &&
                                  scale->scalar_type() == at::kFloat && scale->is_contiguous() &&
                                  scale->device() == device),
                    "codes of ", param.sizes(), " without their scales");
    (is_coded ? coded : list)
        .push_back({.param = param.mutable_data_ptr(),
                    .master = s.master.defined() ? s.master.mutable_data_ptr<float>() : nullptr,
                    .grad = kept.back().const_data_ptr(),
                    .m = s.m.mutable_data_ptr(),
                    .v = s.v.mutable_data_ptr(),
                    .size = param.numel(),
                    .lr = static_cast<float>(s.lr),
                    .weight_decay = static_cast<float>(s.weight_decay),
                    .param_dtype = kernel_dtype(param),
                    .grad_dtype = kernel_dtype(s.grad),
                    .state_dtype = is_coded ? kernels::DType::f32 : kernel_dtype(s.m),
                    .scalar_index = s.scalar_index,
                    .m_scale = is_coded ? s.m_scale.mutable_data_ptr<float>() : nullptr,
                    .v_scale = is_coded ? s.v_scale.mutable_data_ptr<float>() : nullptr});
    MOEBIUS_CHECK(!scalars.defined() || 2 * s.scalar_index + 3 < scalars.numel(), "scalar_index ",
                  s.scalar_index, " in ", scalars.sizes());
  }
  kernels::AdamWArgs args{};
  args.step = static_cast<uint32_t>(options.step);
  args.beta1 = static_cast<float>(options.beta1);
  args.beta2 = static_cast<float>(options.beta2);
  args.eps = static_cast<float>(options.eps);
  args.correction1 = correction(options.beta1, options.step);
  args.correction2 = correction(options.beta2, options.step);
  args.grad_scale = grad_scale.const_data_ptr<float>();
  if (scalars.defined()) {
    MOEBIUS_CHECK(
        scalars.device() == device && scalars.scalar_type() == at::kFloat && scalars.is_contiguous(),
        "scalars are ", scalars.scalar_type(), " on ", scalars.device());
    args.scalars = scalars.const_data_ptr<float>();
  }
  args.tensors = list;
  if (!list.empty()) kernel_table(device).adamw(args, current_stream(device));
  args.tensors = coded;
  if (!coded.empty()) kernel_table(device).adamw_8bit(args, current_stream(device));
}

int64_t moment_blocks(int64_t elements) {
  return (elements + kernels::kMomentBlock - 1) / kernels::kMomentBlock;
}

at::Tensor moment_values(const at::Tensor& codes, const at::Tensor& scales, bool is_first) {
  at::Tensor table = at::empty({256}, at::kFloat);
  float* values = table.mutable_data_ptr<float>();
  for (int code = 0; code < 256; ++code)
    values[code] = is_first ? kernels::decode_first_moment(static_cast<uint8_t>(code))
                            : kernels::decode_second_moment(static_cast<uint8_t>(code));
  const at::Tensor flat = codes.flatten();
  const at::Tensor by_element = scales.repeat_interleave(kernels::kMomentBlock).narrow(0, 0, flat.numel());
  return (table.to(codes.device()).index_select(0, flat.to(at::kLong)) * by_element).view(codes.sizes());
}

at::Tensor adamw_scalars(const std::vector<AdamWRate>& rates, const AdamWOptions& options) {
  at::Tensor scalars = at::empty({2 + 2 * static_cast<int64_t>(rates.size())}, at::kFloat);
  float* out = scalars.mutable_data_ptr<float>();
  *out++ = kernels::adamw_root(correction(options.beta2, options.step));
  *out++ = static_cast<float>(options.step);
  for (const AdamWRate& rate : rates) {
    const float lr = static_cast<float>(rate.lr);
    *out++ = kernels::adamw_step_size(lr, correction(options.beta1, options.step));
    *out++ = kernels::adamw_shrink(lr, static_cast<float>(rate.weight_decay));
  }
  return scalars;
}

}  // namespace moebius::ops
