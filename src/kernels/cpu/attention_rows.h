// Rows of attention scores of some queries, between the matrix products.
#pragma once

#include <cstdint>

namespace moebius::kernels::cpu {

// Products of queries and keys in fp32; replaced by the weights in the dtype, each row where it was. Query r
// sees the first `first_seen` + r keys; the weights of the others become zero.
struct ScoreRows {
  float* scores;   // (num_rows, num_keys)
  int64_t stride;  // floats
  int64_t num_rows, num_keys;
  int64_t first_seen;
  float scale;
  float* lse;  // (num_rows): written by the forward pass (or null), read by the backward pass
};

struct GradientRows {
  float*
      grad_weights;  // (num_rows, num_keys), strides as the scores; replaced by the gradient of the products
  const void* out;   // (num_rows, head_dim) in the dtype
  const void* grad_out;
  int64_t row_stride;  // of out and grad_out, in elements
  int64_t head_dim;
};

}  // namespace moebius::kernels::cpu
