// The routed experts' SwiGLU feed-forward on this device, with autograd: gather, up projection, activation,
// down projection and weighted sum as one operator, so that what is kept for the backward pass does not grow
// with the number of experts per token more than the pre-activation does: x, gate_up and the routing; the
// rest is recomputed. Router-weight gradients come from the activation's backward (kernels/api/swiglu.h), so
// expert outputs are not kept. (The idea: Guo et al. 2025, "SonicMoE"; grouped products: Gale et al. 2022,
// "MegaBlocks")
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/route.h"

namespace moebius::ops {

// x_TD; gate_up_E2FD: (E, 2F, D), rows 2f and 2f+1 of an expert are gate and up of unit f; down_EDF: (E, D,
// F). Returns y_TD = sum_k weight[t,k] * down_e(silu(gate_e(x)) * up_e(x)). bf16 or fp32. With `recompute`,
// gate_up is not kept either but computed again in the backward pass.
at::Tensor expert_ffn(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD, const at::Tensor& down_EDF,
                      const Routing& routing, bool recompute = false);

}  // namespace moebius::ops
