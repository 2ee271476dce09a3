// y_RF = silu(gate) * up, gate and up in the even and odd columns of gate_up_R2F. With autograd; the
// activation is not stored for the backward pass. (Shazeer 2020, "GLU Variants Improve Transformer")
#pragma once

#include <ATen/core/Tensor.h>

namespace moebius::ops {

at::Tensor swiglu(const at::Tensor& gate_up_R2F);

}  // namespace moebius::ops
