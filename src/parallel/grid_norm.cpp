// Shapes: T tokens, D this rank's part of the width.
#include "parallel/grid_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/rsqrt.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"

namespace moebius::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RowHolder final : torch::CustomClassHolder {
  explicit RowHolder(Communicator& r) : row(r) {}
  Communicator& row;
};

// sum over all of the width of a * b, (T, 1) fp32.
at::Tensor dot_over_width(Communicator& row, const at::Tensor& a_TD, const at::Tensor& b_TD) {
  const at::Tensor sum_T1 = (a_TD * b_TD).sum(1, true);
  if (sum_T1.numel() > 0) row.all_reduce(sum_T1).wait();
  return sum_T1;
}

class SplitNorm : public torch::autograd::Function<SplitNorm> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x_TD,
                               const std::optional<at::Tensor>& delta_TD, const at::Tensor& weight_D,
                               double eps, const c10::intrusive_ptr<RowHolder>& holder) {
    // Rounded as the sum that is handed on.
    const at::Tensor sum_TD = delta_TD ? x_TD + *delta_TD : x_TD;
    const at::Tensor wide_TD = sum_TD.to(at::kFloat);
    const auto width = static_cast<double>(weight_D.numel() * holder->row.size());
    const at::Tensor inv_rms_T1 =
        at::rsqrt(dot_over_width(holder->row, wide_TD, wide_TD).div_(width).add_(eps));
    ctx->save_for_backward({sum_TD, weight_D, inv_rms_T1});
    ctx->saved_data["row"] = at::IValue::make_capsule(holder);
    ctx->saved_data["adds"] = delta_TD.has_value();
    ctx->set_materialize_grads(false);
    const at::Tensor y_TD = (wide_TD * inv_rms_T1).mul_(weight_D.to(at::kFloat)).to(x_TD.scalar_type());
    if (delta_TD) return {sum_TD, y_TD};
    return {y_TD};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const bool adds = ctx->saved_data["adds"].toBool();
    const at::Tensor grad_sum_TD = adds ? grads[0] : at::Tensor(), grad_y_TD = grads[adds ? 1 : 0];
    if (!grad_y_TD.defined()) return {grad_sum_TD, grad_sum_TD, {}, {}, {}};
    const variable_list saved = ctx->get_saved_variables();
    const auto holder = c10::static_intrusive_pointer_cast<RowHolder>(ctx->saved_data["row"].toCapsule());
    const at::Tensor wide_TD = saved[0].to(at::kFloat), &inv_rms_T1 = saved[2];
    const auto width = static_cast<double>(saved[1].numel() * holder->row.size());
    const at::Tensor grad_wide_TD = grad_y_TD.to(at::kFloat), normed_TD = wide_TD * inv_rms_T1;
    const at::Tensor grad_weight_D = (grad_wide_TD * normed_TD).sum(0).to(saved[1].scalar_type());
    const at::Tensor weighted_TD = grad_wide_TD * saved[1].to(at::kFloat);
    const at::Tensor mean_T1 = dot_over_width(holder->row, weighted_TD, normed_TD).div_(width);
    at::Tensor grad_TD = weighted_TD.sub(normed_TD * mean_T1).mul_(inv_rms_T1);
    if (grad_sum_TD.defined()) grad_TD = grad_TD + grad_sum_TD.to(at::kFloat);
    grad_TD = grad_TD.to(saved[0].scalar_type());
    return {grad_TD, adds ? grad_TD : at::Tensor(), grad_weight_D, {}, {}};
  }
};

}  // namespace

std::pair<at::Tensor, at::Tensor> split_rms_norm(Communicator& row, const at::Tensor& x_TD,
                                                 const at::Tensor& delta_TD, const at::Tensor& weight_D,
                                                 double eps) {
  MOEBIUS_CHECK(x_TD.dim() == 2 && weight_D.dim() == 1 && x_TD.size(1) == weight_D.size(0) &&
                    x_TD.scalar_type() == weight_D.scalar_type(),
                "norm of ", x_TD.sizes(), " ", x_TD.scalar_type(), " with weight ", weight_D.sizes(), " ",
                weight_D.scalar_type());
  const std::optional<at::Tensor> delta = delta_TD.defined() ? std::optional(delta_TD) : std::nullopt;
  const variable_list out = SplitNorm::apply(x_TD, delta, weight_D, eps, c10::make_intrusive<RowHolder>(row));
  if (delta) return {out[0], out[1]};
  return {x_TD, out[0]};
}

}  // namespace moebius::parallel
