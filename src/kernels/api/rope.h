// Rotary positions with optional query/key normalisation, on the fused projection.
// (Su et al. 2021, "RoFormer"; half-split pairing: element i of a head turns with element i + r/2, r the
// leading elements of a head that are rotated; the elements behind them are only normalised)
// A row of qkv holds H query heads, then Hk key heads, then Hk value heads, each of head_dim elements.
// Queries and keys are first RMS-normalised (if asked), then rotated; values are copied. qkv_out may be
// qkv_in when norm is none.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

enum class QkNorm : uint8_t {
  none,
  head,  // each head by itself; weights of head_dim elements (Qwen3)
  full,  // all query heads together and all key heads together; weights of H*head_dim, Hk*head_dim (OLMoE)
};

struct RopeShape {
  int64_t num_tokens;    // T
  int64_t num_heads;     // H
  int64_t num_kv_heads;  // Hk
  int64_t head_dim;      // even
  QkNorm norm;
  float eps;
  DType dtype;
  int64_t rotary_dim = 0;  // r, even; 0: head_dim. The CUDA kernels take whole heads only.
  int64_t num_rotated() const { return rotary_dim > 0 ? rotary_dim : head_dim; }
  // Groups that are normalised: per token H + Hk for `head`, 2 for `full`, 0 for none.
  int64_t num_norm_groups() const {
    return norm == QkNorm::head ? num_heads + num_kv_heads : (norm == QkNorm::full ? 2 : 0);
  }
};

struct RopeForwardArgs {
  RopeShape shape;
  const void* qkv_in;    // (T, (H + 2 Hk) * head_dim)
  void* qkv_out;         // same shape, out
  const void* q_weight;  // see QkNorm; null when norm is none
  const void* k_weight;
  float* inv_rms;            // (T, num_norm_groups) out; null when norm is none
  const int32_t* positions;  // (T)
  const float* cos_sin;      // (P, r) fp32: r/2 cosines, then r/2 sines, of each position
};

struct RopeBackwardArgs {
  RopeShape shape;
  const void* qkv_in;    // what the forward read; null when norm is none
  const void* grad_out;  // (T, (H + 2 Hk) * head_dim)
  void* grad_in;         // out; may be grad_out
  const void* q_weight;
  const void* k_weight;
  const float* inv_rms;
  float* grad_q_weight;  // fp32, overwritten; null when norm is none
  float* grad_k_weight;
  const int32_t* positions;
  const float* cos_sin;
};

}  // namespace moebius::kernels
