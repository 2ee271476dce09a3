// Root-mean-square normalisation over the last dim, with an optional residual addition in front.
// (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization")
//   s = x + residual (or x);  y = s / sqrt(mean(s^2) + eps) * weight.  Arithmetic in fp32 whatever the dtype.
// Tensors are row-major and contiguous; `dtype` is that of every void pointer.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

struct RmsNormForwardArgs {
  const void* x;         // (R, D)
  const void* residual;  // (R, D), or null
  void* sum;             // (R, D) out: s; null exactly when residual is null
  const void* weight;    // (D)
  void* y;               // (R, D) out
  float* inv_rms;        // (R) out, kept for the backward
  int64_t num_rows;      // R
  int64_t width;         // D
  float eps;
  DType dtype;
};

struct RmsNormBackwardArgs {
  const void* s;         // (R, D) what was normalised
  const void* weight;    // (D)
  const float* inv_rms;  // (R)
  const void* grad_y;    // (R, D)
  const void* grad_sum;  // (R, D) gradient that reaches s by the residual path, or null; added to grad_s
  void* grad_s;          // (R, D) out
  float* grad_weight;    // (D) out, fp32, overwritten; summed over rows in a fixed order
  int64_t num_rows;
  int64_t width;
  DType dtype;
};

}  // namespace moebius::kernels
