// The optimizer over lists of tensors, so that a device can serve the whole list in few launches.
#pragma once

#include <cmath>
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
  int64_t scalar_index = 0;  // see AdamWArgs::scalars
  // For adamw_8bit: scales of the blocks of m and v, which are codes then (kernels/api/moment_codes.h).
  float *m_scale = nullptr, *v_scale = nullptr;  // (n / kMomentBlock, rounded up)
};

// What a step makes of learning rate, decay and step number, each rounded once.
inline float adamw_step_size(float lr, float correction1) {
  return static_cast<float>(static_cast<double>(lr) / correction1);
}
inline float adamw_shrink(float lr, float weight_decay) {
  return static_cast<float>(1.0 - static_cast<double>(lr) * weight_decay);
}
inline float adamw_root(float correction2) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(correction2)));
}

struct AdamWArgs {
  std::span<const AdamWTensor> tensors;
  float beta1, beta2, eps;
  float correction1, correction2;  // c1, c2
  // One float: the clipping factor. Not finite: nothing is changed (the step is skipped).
  const float* grad_scale;
  // On the device, or null: what changes from step to step, so that a recorded launch can be run again with
  // other values. [0]: adamw_root; [1]: the number of the step; [2 + 2 i], [3 + 2 i]: adamw_step_size and
  // adamw_shrink of the tensors with scalar_index i. lr, weight_decay, the corrections and `step` are not
  // looked at then.
  const float* scalars = nullptr;
  uint32_t step = 1;  // for the roundings of adamw_8bit
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
