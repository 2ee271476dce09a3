// The products of layers with their parameters: all weights but those of the router, the embedding and the
// output layer are multiplied here (quant/product.h says how).
#pragma once

#include "nn/param.h"
#include "quant/product.h"

namespace moebius::nn {

// y = x w^T with w (N, K), plus a bias (N) where the layer has one.
inline at::Tensor linear(const at::Tensor& x, const Param& weight, const Param* bias = nullptr) {
  return quant::linear(x, weight.value, value_of(bias), weight.product.get());
}

// The weight as linear() sees it, for a layer that takes it apart; no autograd where it is quantised.
inline at::Tensor product_values(const Param& weight) {
  return weight.product ? weight.product->values(weight.value) : weight.value;
}

}  // namespace moebius::nn
