// Rows of attention scores of some queries, between the matrix products.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moebius::kernels::cpu {

// Products of queries and keys in fp32; replaced by the weights in the dtype, each row where it was. Query r
// sees the last `window` of the first `first_seen` + r keys, which may be more than there are here: then some
// of those that it sees, or none. The weights of the others become zero.
struct ScoreRows {
  float* scores;   // (num_rows, num_keys)
  int64_t stride;  // floats
  int64_t num_rows, num_keys;
  int64_t first_seen;
  float scale;
  float* lse;         // (num_rows): written by the forward pass (or null), read by the backward pass
  int64_t window;     // 0: all of them
  const float* sink;  // of the head, or null

  int64_t end_key(int64_t r) const { return std::min(first_seen + r, num_keys); }
  int64_t first_key(int64_t r) const {
    return window > 0 ? std::clamp<int64_t>(first_seen + r - window, 0, num_keys) : 0;
  }
};

// What the queries have got from other keys.
struct MergedRows {
  float* out;  // (num_rows, width)
  int64_t stride, width;
};

struct GradientRows {
  float*
      grad_weights;  // (num_rows, num_keys), strides as the scores; replaced by the gradient of the products
  const void* out;   // (num_rows, value_dim) in the dtype
  const void* grad_out;
  int64_t row_stride;  // of out and grad_out, in elements
  int64_t value_dim;
  float* grad_sink;  // added to; null exactly when there is no sink
};

}  // namespace moebius::kernels::cpu
