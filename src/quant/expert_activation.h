// What lies between the two products of experts that are held as integers. No autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/biased_experts.h"
#include "ops/route.h"

namespace moebius::quant {

// gate_up_R2F fp32 (biases are in it) to (R, F) fp32.
at::Tensor expert_activation(const at::Tensor& gate_up_R2F, const ops::ExpertForm& form,
                             const ops::Routing& routing);

// A bias as the integer products take it; undefined stays so.
at::Tensor fp32_bias(const at::Tensor& bias);

}  // namespace moebius::quant
