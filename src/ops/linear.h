// Dense product with a weight, with autograd: y_RN = x_RK w_NK^T. Leading dims of x are kept. x and weight of
// one dtype, fp32 or bf16; sums in fp32. On the CPU by the project's own kernel (kernels/api/grouped_gemm.h
// with one group), whose result does not depend on the number of threads; on CUDA by libtorch.
#pragma once

#include <ATen/core/Tensor.h>

namespace moebius::ops {

// Call it qualified (ops::linear): at::linear is found for tensors too.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK);

// The same plus bias_N, unless that is undefined.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK, const at::Tensor& bias_N);

}  // namespace moebius::ops
