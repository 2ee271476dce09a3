// The routed experts' feed-forward in training with integer products: forward and the gradient of the inputs
// multiply int8 codes, weight gradients stay in the model's dtype (the form of SwitchBack: Wortsman et al.
// 2023, "Stable and low-precision training for large-scale vision-language models"). Shapes: T tokens, R rows
// (T*K), D model width, F expert width, E experts, N outputs, K inputs.
//
// Every row of x, of the activation and of both gradients has its own scale; a weight one per output channel.
// The product with the transposed weight uses the same codes: sum_n g(n) s(n) code(n, k), so the weight's
// scales are multiplied into the gradient before that is quantised, and a weight is rounded once for both
// directions.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/int8_linear.h"
#include "ops/route.h"

namespace moebius::ops {

// The codes of a weight (E, N, K), for both directions: 2 bytes per element.
struct Int8TrainingWeight {
  Int8Weight forward;     // N outputs
  Int8Weight transposed;  // K outputs, scales of 1
  at::Tensor scales_EN;   // fp32
};

// Whether weights of such dims can be used: on a GPU both must be multiples of 16.
bool int8_training_serves(at::Device device, int64_t n, int64_t k);

// Of a weight as it is now. `activated`: rows are gates and ups, whose product may apply the activation (used
// on a GPU). `previous`: its memory is taken again where the dims are the same.
Int8TrainingWeight int8_training_weight(const at::Tensor& weight_ENK, bool activated,
                                        Int8TrainingWeight previous = {});

// What ops::expert_ffn computes, with autograd. `gate_up` and `down` are of the weights' present values; the
// float weights only receive gradients. bf16 on a GPU; fp32 too on a CPU.
at::Tensor int8_training_expert_ffn(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                                    const at::Tensor& down_EDF, const Int8TrainingWeight& gate_up,
                                    const Int8TrainingWeight& down, const Routing& routing,
                                    bool recompute = false);

}  // namespace moebius::ops
