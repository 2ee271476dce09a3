// The routed experts' feed-forward as differentiable operators of its steps, for a pass that changes weights
// and activations in between (ops::expert_ffn is the fused whole, which keeps less). Shapes: T tokens, R rows
// sorted by expert, K experts per token, D model width, F expert width, E experts.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/biased_experts.h"
#include "ops/route.h"

namespace moebius::quant {

// Rows of x_TD times the weights of their experts (E, N, D): (R, N). Rows of the unused tail are zero.
at::Tensor product_of_tokens(const at::Tensor& x_TD, const at::Tensor& weight_END,
                             const ops::Routing& routing);

// The same of rows x_RF as they are.
at::Tensor product_of_rows(const at::Tensor& x_RF, const at::Tensor& weight_ENF, const ops::Routing& routing);

// The activation of gate_up_R2F with the form's biases; the tail is zero.
at::Tensor activated(const at::Tensor& gate_up_R2F, const ops::ExpertForm& form, const ops::Routing& routing);

// y_TD = sum_k weight[t, k] * (row of slot (t, k), plus its expert's down bias).
at::Tensor combined(const at::Tensor& y_RD, const ops::ExpertForm& form, const ops::Routing& routing);

}  // namespace moebius::quant
