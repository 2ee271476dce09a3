// Causal self-attention over packed documents on the CPU. (On the GPU it is libtorch's; these entries are
// null there.) Memory grows with the number of tokens, not with its square: a block of queries at a time
// against all keys before it, and the backward pass computes the weights again from the kept logarithms of
// their sums. (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2022,
// "FlashAttention") A row of qkv holds H query heads, then Hk key heads, then Hk value heads, each of d
// elements; query head h reads key and value head h / (H / Hk). Sums in fp32; results do not depend on the
// number of threads.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

struct AttentionShape {
  const int32_t* cu_seqlens;  // (N + 1) ascending: document i is tokens [cu_seqlens[i], cu_seqlens[i+1])
  int64_t num_documents;      // N
  int64_t num_tokens;         // T
  int64_t num_heads;          // H
  int64_t num_kv_heads;       // Hk, divides H
  int64_t head_dim;           // d
  DType dtype;                // of every void pointer
};

struct AttentionForwardArgs {
  AttentionShape shape;
  const void* qkv;  // (T, (H + 2 Hk) * d)
  void* out;        // (T, H * d) out
  float* lse;       // (H, T) out: logarithm of each query's sum of exponentials; or null
};

struct AttentionBackwardArgs {
  AttentionShape shape;
  const void* qkv;
  const void* out;       // (T, H * d), of the forward pass
  const float* lse;      // (H, T), of the forward pass
  const void* grad_out;  // (T, H * d)
  void* grad_qkv;        // (T, (H + 2 Hk) * d) out
};

}  // namespace moebius::kernels
