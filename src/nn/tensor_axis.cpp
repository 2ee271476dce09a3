#include "nn/tensor_axis.h"

#include "base/check.h"
#include "nn/recompute.h"
#include "ops/norm.h"

namespace moebius::nn {
namespace {

std::pair<at::Tensor, at::Tensor> add_norm_here(const at::Tensor& x_TD, const at::Tensor& delta_TD,
                                                const at::Tensor& weight_D, double eps) {
  if (!delta_TD.defined()) return {x_TD, ops::rms_norm(x_TD, weight_D, eps)};
  return ops::add_rms_norm(x_TD, delta_TD, weight_D, eps);
}

}  // namespace

std::pair<at::Tensor, at::Tensor> TensorAxis::add_norm(const at::Tensor& x_TD, const at::Tensor& delta_TD,
                                                       const at::Tensor& weight_D, double eps) const {
  return add_norm_here(x_TD, delta_TD, outside(weight_D), eps);
}

at::Tensor TensorAxis::first_product(const at::Tensor& x_TD, const at::Tensor& weight_ND) const {
  MOEBIUS_CHECK(false, "products of blocks ", x_TD.sizes(), " ", weight_ND.sizes(), " are a grid's");
  return {};
}

at::Tensor TensorAxis::second_product(const at::Tensor& h_TN, const at::Tensor& weight_DN) const {
  MOEBIUS_CHECK(false, "products of blocks ", h_TN.sizes(), " ", weight_DN.sizes(), " are a grid's");
  return {};
}

std::pair<at::Tensor, at::Tensor> add_norm(const TensorAxis* axis, const at::Tensor& x_TD,
                                           const at::Tensor& delta_TD, const at::Tensor& weight_D,
                                           double eps) {
  if (axis == nullptr) return add_norm_here(x_TD, delta_TD, weight_D, eps);
  return axis->add_norm(x_TD, delta_TD, weight_D, eps);
}

at::Tensor rows_of_line(const TensorAxis* axis, const at::Tensor& x_T) {
  const AxisPlace lines = tokens_of(axis);
  if (lines.size == 1 || !x_T.defined()) return x_T;
  const Range rows = share_of(x_T.size(0), lines);
  return x_T.narrow(0, rows.begin, rows.count);
}

at::Tensor enter(const TensorAxis* axis, const at::Tensor& x_TD, int64_t num_tokens, Discards* discards) {
  if (axis == nullptr) return x_TD;
  const at::Tensor in_TD = axis->enter(x_TD, num_tokens);
  // Where it is memory of its own, the exchange makes it again.
  const bool is_own = !in_TD.is_alias_of(x_TD) && in_TD.storage().nbytes() == in_TD.nbytes();
  if (discards != nullptr && is_own)
    discards->add(in_TD, [axis, x = x_TD.detach(), num_tokens] { return axis->enter(x, num_tokens); });
  return in_TD;
}

}  // namespace moebius::nn
