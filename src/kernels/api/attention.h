// Causal self-attention over packed documents on the CPU. (On the GPU it is libtorch's; these entries are
// null there.) Memory grows with the number of tokens, not with its square: a block of queries at a time
// against all keys before it, and the backward pass computes the weights again from the kept logarithms of
// their sums. (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2022,
// "FlashAttention") A row of qkv holds H query heads of d elements, then Hk key heads of d, then Hk value
// heads of dv; query head h reads key and value head h / (H / Hk). Sums in fp32; results do not depend on the
// number of threads. A sink is a logit of a head that takes part in the denominator of the softmax and in
// nothing else (Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks"; learned: OpenAI
// 2025, "gpt-oss"); it is not scaled.
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
  int64_t value_dim;          // dv
  int64_t window;             // a query sees this many tokens, itself included; 0: all before it
  float scale;                // of the products of queries and keys
};

struct AttentionForwardArgs {
  AttentionShape shape;
  const void* qkv;     // (T, (H + Hk) * d + Hk * dv)
  void* out;           // (T, H * dv) out
  float* lse;          // (H, T) out: logarithm of each query's sum of exponentials, sink included; or null
  const float* sinks;  // (H), or null
};

struct AttentionBackwardArgs {
  AttentionShape shape;
  const void* qkv;
  const void* out;       // (T, H * dv), of the forward pass
  const float* lse;      // (H, T), of the forward pass
  const void* grad_out;  // (T, H * dv)
  void* grad_qkv;        // as qkv, out
  const float* sinks;    // (H), or null
  float* grad_sinks;     // (H) out, summed in a fixed order; null exactly when sinks is
};

}  // namespace moebius::kernels
