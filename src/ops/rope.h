// Query/key normalisation and rotary positions on the fused projection, with autograd. See
// kernels/api/rope.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/api/rope.h"

namespace moebius::ops {

struct RopeOptions {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  kernels::QkNorm norm = kernels::QkNorm::none;
  double eps = 1e-5;
};

// Table of cosines and sines, (num_positions, head_dim) fp32: angle(p, i) = p * theta^(-2i / head_dim).
at::Tensor rope_table(int64_t num_positions, int64_t head_dim, double theta, at::Device device);

// qkv_TC: (T, (H + 2 Hk) * head_dim). q_weight, k_weight undefined when norm is none. positions_T int32.
// Returns the same shape: normalised and rotated queries and keys, values as they came.
at::Tensor qk_norm_rope(const at::Tensor& qkv_TC, const at::Tensor& q_weight, const at::Tensor& k_weight,
                        const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                        const RopeOptions& options);

}  // namespace moebius::ops
