// How routed tokens reach their experts and come back. The interface lives here with its caller;
// implementations for several processes sit higher and are plugged in.
// (docs/adr/0011-dispatcher-covers-the-experts.md)
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "ops/route.h"
#include "quant/product.h"

namespace moebius::moe {

// Those that this process holds: all experts, or a block of neighbouring ones. Computed by quant::expert_ffn,
// whatever the form of the weights.
using quant::ExpertWeights;

class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  // y_TD = sum_k weight[t, k] * expert_{choice[t, k]}(x_t), with autograd in x, the routing weights and the
  // experts' weights. `recompute`: keep less for the backward pass. `meanwhile` is called once, wherever it
  // hides best: it may compute what does not depend on the result, on the same thread.
  virtual at::Tensor apply(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                           bool recompute, const std::function<void()>& meanwhile) const = 0;
};

// All experts in this process: one fused operator (quant::expert_ffn).
class LocalDispatcher final : public TokenDispatcher {
 public:
  at::Tensor apply(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                   bool recompute, const std::function<void()>& meanwhile) const override;
};

}  // namespace moebius::moe
