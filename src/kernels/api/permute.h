// Moving token rows to expert order and back.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

// rows[r] = src[order[r] / K]; zeros where order[r] < 0.
struct GatherRowsArgs {
  const void* src;       // (T, D)
  const int32_t* order;  // (R)
  void* rows;            // (R, D) out
  int64_t num_rows;      // R
  int64_t width;         // D
  int64_t top_k;         // K
  DType dtype;
};

// out[t] = add[t] + sum over k of weights[t, k] * rows[inverse[t*K + k]], summed in fp32 in the order of k;
// dropped slots (inverse < 0) add nothing. Deterministic.
struct CombineRowsArgs {
  const void* rows;        // (R, D)
  const int32_t* inverse;  // (T*K)
  const float* weights;    // (T*K), or null for 1
  const void* add;         // (T, D), or null
  void* out;               // (T, D) out; may be add
  int64_t num_tokens;      // T
  int64_t width;           // D
  int64_t top_k;           // K
  DType dtype;
};

}  // namespace moebius::kernels
