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
  // Tokens of a sequence, where processes hold parts of each (nn/context_axis.h), else of no meaning: the
  // sequences have one length, and no document lies in two of them.
  int64_t sequence_length = 0;
  // Length of every document when all are equal, else 0.
  int64_t uniform_length() const;
};

struct AttentionShape {
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t value_dim = 0;  // of a value head; 0: head_dim
  int64_t window = 0;     // tokens that a query sees, itself included; 0: all before it
  double scale = 0.0;     // of the products of queries and keys; 0: 1 / sqrt(head_dim)

  int64_t value_width() const { return value_dim > 0 ? value_dim : head_dim; }
  int64_t row_width() const { return (num_heads + num_kv_heads) * head_dim + num_kv_heads * value_width(); }
  int64_t out_width() const { return num_heads * value_width(); }
  double score_scale() const;
};

// qkv_TC: (T, row_width), queries first, then keys, then values, positions already applied. Returns
// (T, H * value_dim); no document sees another. sinks_H, where defined: a logit per query head that joins the
// denominator of the softmax, unscaled (kernels/api/attention.h). On CUDA windows and sinks go through
// libtorch's operators in blocks (ops/attention_blocks.h).
at::Tensor attention(const at::Tensor& qkv_TC, const Segments& segments, const AttentionShape& shape,
                     const at::Tensor& sinks_H = {});

// The last T of N positions of one sequence against all of them, without autograd. q_HTd; keys_GNd and
// values_GNe of G key heads. Returns (T, H * e).
at::Tensor attention_with_cache(const at::Tensor& q_HTd, const at::Tensor& keys_GNd,
                                const at::Tensor& values_GNe, const AttentionShape& shape,
                                const at::Tensor& sinks_H = {});

}  // namespace moebius::ops
