// Second stage of the deterministic reductions: out[c] = sum over rows of partial[row * stride + c], in a
// fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace moebius::kernels::cuda {

void sum_columns(const float* partial,  // (rows, stride)
                 int64_t rows, int64_t width, int64_t stride,
                 float* out,  // (width) out
                 cudaStream_t stream);

}  // namespace moebius::kernels::cuda
