#include "ops/norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct Normed {
  at::Tensor sum, y, inv_rms;  // sum is undefined without a residual
};

Normed forward_kernel(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps) {
  const int64_t width = weight.numel();
  const int64_t num_rows = x.numel() / width;
  Normed out{residual.defined() ? at::empty_like(x) : at::Tensor(), at::empty_like(x),
             at::empty({num_rows}, x.options().dtype(at::kFloat))};
  if (num_rows == 0) return out;
  kernels::RmsNormForwardArgs args{};
  args.x = x.const_data_ptr();
  args.residual = residual.defined() ? residual.const_data_ptr() : nullptr;
  args.sum = residual.defined() ? out.sum.mutable_data_ptr() : nullptr;
  args.weight = weight.const_data_ptr();
  args.y = out.y.mutable_data_ptr();
  args.inv_rms = out.inv_rms.mutable_data_ptr<float>();
  args.num_rows = num_rows;
  args.width = width;
  args.eps = static_cast<float>(eps);
  args.dtype = kernel_dtype(x);
  kernel_table(x.device()).rms_norm_forward(args, current_stream(x.device()));
  return out;
}

// Gradients of s and weight; grad_sum may be undefined.
std::pair<at::Tensor, at::Tensor> backward_kernel(const at::Tensor& s, const at::Tensor& weight,
                                                  const at::Tensor& inv_rms, const at::Tensor& grad_y,
                                                  const at::Tensor& grad_sum) {
  const at::Tensor grad_y_RD = grad_y.contiguous();
  const at::Tensor grad_sum_RD = grad_sum.defined() ? grad_sum.contiguous() : at::Tensor();
  at::Tensor grad_s = at::empty_like(s);
  at::Tensor grad_weight = at::empty({weight.numel()}, weight.options().dtype(at::kFloat));
  if (s.numel() == 0) return {grad_s, at::zeros_like(weight)};
  kernels::RmsNormBackwardArgs args{};
  args.s = s.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.inv_rms = inv_rms.const_data_ptr<float>();
  args.grad_y = grad_y_RD.const_data_ptr();
  args.grad_sum = grad_sum_RD.defined() ? grad_sum_RD.const_data_ptr() : nullptr;
  args.grad_s = grad_s.mutable_data_ptr();
  args.grad_weight = grad_weight.mutable_data_ptr<float>();
  args.num_rows = inv_rms.numel();
  args.width = weight.numel();
  args.dtype = kernel_dtype(s);
  kernel_table(s.device()).rms_norm_backward(args, current_stream(s.device()));
  return {grad_s, grad_weight.to(weight.scalar_type())};
}

class RmsNorm : public Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, double eps) {
    Normed normed = forward_kernel(x, {}, weight, eps);
    ctx->save_for_backward({x, weight, normed.inv_rms});
    ctx->set_materialize_grads(false);
    return normed.y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}, {}, {}};
    const variable_list saved = ctx->get_saved_variables();
    auto [grad_x, grad_weight] = backward_kernel(saved[0], saved[1], saved[2], grads[0], {});
    return {grad_x, grad_weight, {}};
  }
};

class AddRmsNorm : public Function<AddRmsNorm> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& residual,
                               const at::Tensor& weight, double eps) {
    Normed normed = forward_kernel(x, residual, weight, eps);
    ctx->save_for_backward({normed.sum, weight, normed.inv_rms});
    ctx->set_materialize_grads(false);
    return {normed.sum, normed.y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor &grad_sum = grads[0], &grad_y = grads[1];
    if (!grad_y.defined()) return {grad_sum, grad_sum, {}, {}};
    const variable_list saved = ctx->get_saved_variables();
    auto [grad_s, grad_weight] = backward_kernel(saved[0], saved[1], saved[2], grad_y, grad_sum);
    return {grad_s, grad_s, grad_weight, {}};
  }
};

void check_input(const at::Tensor& x, const at::Tensor& weight) {
  MOEBIUS_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.numel() >= 1 && x.size(-1) == weight.size(0),
                "rms_norm of ", x.sizes(), " with weight ", weight.sizes());
  MOEBIUS_CHECK(x.scalar_type() == weight.scalar_type() && x.device() == weight.device(), "rms_norm of ",
                x.scalar_type(), " on ", x.device(), " with weight ", weight.scalar_type(), " on ",
                weight.device());
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps) {
  check_input(x_RD, weight_D);
  return RmsNorm::apply(x_RD.contiguous(), weight_D.contiguous(), eps);
}

std::pair<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x_RD, const at::Tensor& residual_RD,
                                               const at::Tensor& weight_D, double eps) {
  check_input(x_RD, weight_D);
  MOEBIUS_CHECK(x_RD.sizes() == residual_RD.sizes() && x_RD.scalar_type() == residual_RD.scalar_type(),
                "add_rms_norm of ", x_RD.sizes(), " ", x_RD.scalar_type(), " and ", residual_RD.sizes(), " ",
                residual_RD.scalar_type());
  variable_list out =
      AddRmsNorm::apply(x_RD.contiguous(), residual_RD.contiguous(), weight_D.contiguous(), eps);
  return {out[0], out[1]};
}

}  // namespace moebius::ops
