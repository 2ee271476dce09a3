// The one entry for products of activations with weights. A weight is plain floats, or it has a Product: an
// object that knows how this weight is held and multiplied (rounded while training, integers for serving).
// Layers hand the object through and never ask what it is; without one these functions are the float
// operators, bit for bit. Router, norms, embedding and output layer do not come through here: they stay
// float.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "ops/biased_experts.h"
#include "ops/route.h"

namespace moebius::quant {

class Product;

// The weights of the experts that this process holds. Either both have a product, of one implementation, or
// none has.
struct ExpertWeights {
  at::Tensor gate_up_E2FD;    // (E, 2F, D)
  at::Tensor down_EDF;        // (E, D, F)
  ops::ExpertForm form = {};  // biases and activation
  const Product* gate_up_product = nullptr;
  const Product* down_product = nullptr;
};

// One weight that is not used as plain floats. Called from one thread at a time; a const call may be made a
// second time in the backward pass (recomputation) and then gives the same values.
class Product {
 public:
  virtual ~Product() = default;

  // y = x weight_NK^T; leading dims of x are kept, y has its dtype. `weight_NK`: the value of the parameter,
  // which an object that holds the weight itself ignores.
  virtual at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) const = 0;

  // What ops::expert_ffn computes, with the forms of ops::biased_expert_ffn. Asked of gate_up's product.
  virtual at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing,
                                const ExpertWeights& experts, bool recompute) const = 0;

  // The weight in floats of the model's dtype, as the products see it: for a layer that takes it apart.
  virtual at::Tensor values(const at::Tensor& weight) const = 0;

  // Memory of the weight where the object holds it itself, scales and all; 0 where the parameter does.
  virtual int64_t num_bytes() const { return 0; }
};

// y = x weight_NK^T, plus bias_N unless that is undefined. `product` null: ops::linear.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK, const at::Tensor& bias_N,
                  const Product* product);

// y_TD = sum_k weight[t, k] * expert_{choice[t, k]}(x_t), with autograd where the implementation trains.
// `recompute`: keep less for the backward pass.
at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                      bool recompute);

}  // namespace moebius::quant
