// The optimizer over lists of tensors, so that a device can serve the whole list in few launches.
#pragma once

#include <span>

#include "kernels/api/types.h"

namespace moebius::kernels {

// AdamW with decoupled weight decay (Loshchilov & Hutter 2019): with g = grad * *grad_scale,
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w = w - lr * decay * w - lr * (m / c1) / (sqrt(v / c2) + eps),   c_i = 1 - b_i^step
// w is `master` where given (and `param` its rounding), else `param`. Arithmetic in fp32.
struct AdamWTensor {
  void* param;       // (n) param_dtype
  float* master;     // (n), or null
  const void* grad;  // (n) grad_dtype
  void* m;           // (n) state_dtype
  void* v;           // (n) state_dtype
  int64_t size;      // n
  float lr;
  float weight_decay;
  DType param_dtype, grad_dtype, state_dtype;
};

struct AdamWArgs {
  std::span<const AdamWTensor> tensors;
  float beta1, beta2, eps;
  float correction1, correction2;  // c1, c2
  // One float: the clipping factor. Not finite: nothing is changed (the step is skipped).
  const float* grad_scale;
};

struct GradTensor {
  const void* data;
  int64_t size;
  DType dtype;
};

// out[0] = sum of squares of all elements (fp32 inputs are squared and summed in at least fp32 with a fixed
// order); not finite when any element is not.
struct SumSquaresArgs {
  std::span<const GradTensor> tensors;
  float* out;
};

}  // namespace moebius::kernels
