// The products of layers with their parameters: all weights but those of the router, the embedding and the
// output layer are multiplied here (quant/product.h says how).
#pragma once

#include "nn/param.h"
#include "nn/tensor_axis.h"
#include "quant/product.h"

namespace moebius::nn {

// y = x w^T with w (N, K), plus a bias (N) where the layer has one.
inline at::Tensor linear(const at::Tensor& x, const Param& weight, const Param* bias = nullptr) {
  return quant::linear(x, weight.value, value_of(bias), weight.product.get());
}

// A pair of products between which ranks of an axis have heads or hidden units of their own:
//
//   h = first_linear(axis, enter_pair(axis, x, T, discards), up, bias);
//   y = leave_pair(axis, second_linear(axis, f(h), down));
//
// On a grid of ranks the products themselves bring together what enter_pair() and leave_pair() do elsewhere.
inline at::Tensor enter_pair(const TensorAxis* axis, const at::Tensor& x_TD, int64_t num_tokens,
                             Discards* discards = nullptr) {
  return in_blocks(axis) ? x_TD : enter(axis, x_TD, num_tokens, discards);
}
inline at::Tensor first_linear(const TensorAxis* axis, const at::Tensor& x_TD, const Param& weight,
                               const Param* bias = nullptr) {
  if (!in_blocks(axis)) return linear(x_TD, weight, bias);
  const at::Tensor h_TN = axis->first_product(x_TD, weight.value);
  return bias == nullptr ? h_TN : h_TN.add(axis->of_lines(bias->value));
}
inline at::Tensor second_linear(const TensorAxis* axis, const at::Tensor& h_TN, const Param& weight) {
  return in_blocks(axis) ? axis->second_product(h_TN, weight.value) : linear(h_TN, weight);
}
inline at::Tensor leave_pair(const TensorAxis* axis, const at::Tensor& y_TD) {
  return in_blocks(axis) ? y_TD : leave(axis, y_TD);
}

// The weight as linear() sees it, for a layer that takes it apart; no autograd where it is quantised.
inline at::Tensor product_values(const Param& weight) {
  return weight.product ? weight.product->values(weight.value) : weight.value;
}

}  // namespace moebius::nn
