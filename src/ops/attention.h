// Causal self-attention over packed documents, with autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moebius::ops {

// Borders of the documents in a flat batch of T tokens: document i is [cu_seqlens[i], cu_seqlens[i+1]).
struct Segments {
  std::vector<int32_t>
      cu_seqlens;  // N + 1, on the host: the plan of a batch is host knowledge, no device copy back
  at::Tensor cu_seqlens_device;  // (N + 1) int32 on the model's device; only needed when lengths differ
  int64_t max_length = 0;
  // Length of every document when all are equal, else 0.
  int64_t uniform_length() const;
};

struct AttentionShape {
  int64_t num_heads, num_kv_heads, head_dim;
};

// qkv_TC: (T, (H + 2 Hk) * head_dim), queries first, then keys, then values, positions already applied.
// Returns (T, H * head_dim). Scores are scaled by 1/sqrt(head_dim); no document sees another.
at::Tensor attention(const at::Tensor& qkv_TC, const Segments& segments, const AttentionShape& shape);

}  // namespace moebius::ops
