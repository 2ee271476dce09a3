// RMSNorm with autograd. Shapes: x_RD any leading dims, contiguous; weight_D of the same dtype (fp32 or
// bf16). Statistics in fp32. (Zhang & Sennrich 2019)
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace moebius::ops {

// y = x / sqrt(mean(x^2) + eps) * weight.
at::Tensor rms_norm(const at::Tensor& x_RD, const at::Tensor& weight_D, double eps);

// sum = x + residual;  y = rms_norm(sum). Returns {sum, y}; one pass over memory.
std::pair<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x_RD, const at::Tensor& residual_RD,
                                               const at::Tensor& weight_D, double eps);

}  // namespace moebius::ops
