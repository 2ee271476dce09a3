// Cross-entropy of rows of logits with integer targets, loss and gradient in one pass.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

inline constexpr int64_t kIgnoredTarget = -100;

// loss[r] = logsumexp(logits[r]) - logits[r, target[r]]; 0 for ignored targets.
// grad_logits[r] = scale * (softmax(logits[r]) - onehot(target[r])); zeros for ignored targets.
struct CrossEntropyArgs {
  const void* logits;      // (R, V)
  const int64_t* targets;  // (R) in [0, V) or kIgnoredTarget
  float* loss;             // (R) out
  void* grad_logits;       // (R, V) out, may be logits; or null when only the loss is wanted
  const float* scale;      // pointer to one float (device memory for device kernels)
  int64_t num_rows;
  int64_t vocab;  // V
  DType dtype;
};

}  // namespace moebius::kernels
