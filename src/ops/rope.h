// Query/key normalisation and rotary positions on the fused projection, with autograd. See
// kernels/api/rope.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/api/rope.h"
#include "ops/rope_scaling.h"

namespace moebius::ops {

struct RopeOptions {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  kernels::QkNorm norm = kernels::QkNorm::none;
  double eps = 1e-5;
  int64_t rotary_dim = 0;  // leading elements of a head that are rotated; 0: all
};

// Table of cosines and sines, (num_positions, dim) fp32: angle(p, i) = p * frequency_i, by default
// theta^(-2i / dim); times the scaling's attention factor. `context`: the longest sequence, for dynamic
// scaling.
at::Tensor rope_table(int64_t num_positions, int64_t dim, double theta, at::Device device,
                      const RopeScaling& scaling = {}, int64_t context = 0);

// qkv_TC: (T, (H + 2 Hk) * head_dim). q_weight, k_weight undefined when norm is none. positions_T int32.
// cos_sin_PD: rope_table of the rotated elements. Returns the same shape: normalised and rotated queries and
// keys, values as they came. On CUDA heads that are rotated in part go through libtorch's operators.
at::Tensor qk_norm_rope(const at::Tensor& qkv_TC, const at::Tensor& q_weight, const at::Tensor& k_weight,
                        const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                        const RopeOptions& options);

// x_THd of any number of heads with all d elements rotated, by libtorch's operators in fp32 and back, with
// its autograd; for heads that are no part of a fused projection.
at::Tensor rotate(const at::Tensor& x_THd, const at::Tensor& positions_T, const at::Tensor& cos_sin_Pd);

}  // namespace moebius::ops
