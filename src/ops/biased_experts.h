// The routed experts' feed-forward with biases and other activations, with autograd: what ops/experts.h does,
// in more passes. (OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card"; its published code)
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/route.h"

namespace moebius::ops {

struct ExpertForm {
  at::Tensor gate_up_bias_E2F, down_bias_ED;  // undefined: none
  // false: silu(gate) * up. true: (up + 1) * gate * sigmoid(alpha * gate) with gate at most `limit` and up
  // within plus and minus that.
  bool clamped = false;
  double alpha = 1.702, limit = 7.0;

  bool is_plain() const { return !gate_up_bias_E2F.defined() && !down_bias_ED.defined() && !clamped; }
};

// As expert_ffn. routing.experts_TK is read too.
at::Tensor biased_expert_ffn(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                             const at::Tensor& down_EDF, const Routing& routing, const ExpertForm& form,
                             bool recompute = false);

}  // namespace moebius::ops
