// Attention of some queries to some keys on the CPU, for those who do not have all of both at one time: what
// a query has got from the keys so far is kept beside the logarithm of its sum of exponentials, and both
// become those of all keys so far. (Liu et al. 2023, "Ring Attention with Blockwise Transformers")
//
// As in attention.h query head h reads key and value head h / (H / Hk), sums are in fp32, and memory grows
// with the number of tokens. A piece is one run of queries and one run of keys, whose distance in their
// document `first_seen` says.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

struct AttentionPiece {
  int64_t query_begin, query_end;  // rows of q, out and lse
  int64_t key_begin, key_end;      // rows of k and v
  // Keys that the first query sees, each further one more, were there no window; may be more than there are.
  int64_t first_seen;
  int64_t group;  // pieces that may share rows (a document); ascending

  int64_t num_queries() const { return query_end - query_begin; }
  int64_t num_keys() const { return key_end - key_begin; }
};

struct AttentionPartShape {
  const AttentionPiece* pieces;  // two have the same queries or none in common
  int64_t num_pieces;
  int64_t num_queries;   // T
  int64_t query_stride;  // elements between rows of q, and
  int64_t key_stride;    // of k and v
  int64_t num_heads;     // H
  int64_t num_kv_heads;  // Hk, divides H
  int64_t head_dim;      // d
  int64_t value_dim;     // dv
  int64_t window;        // a query sees this many tokens, itself included; 0: all before it
  float scale;           // of the products of queries and keys
  DType dtype;           // of every void pointer
};

struct AttentionPartForwardArgs {
  AttentionPartShape shape;
  const void* q;  // (T, H * d), rows apart
  const void* k;  // (N, Hk * d), rows apart
  const void* v;  // (N, Hk * dv), rows apart
  float* out;     // (T, H * dv) in and out: weighted means of the values so far
  float* lse;     // (H, T) in and out: minus infinity before any key, or the logit of a sink
};

struct AttentionPartBackwardArgs {
  AttentionPartShape shape;
  const void* q;
  const void* k;
  const void* v;
  const void* out;       // (T, H * dv), of all keys
  const float* lse;      // (H, T), of all keys
  const void* grad_out;  // (T, H * dv)
  float* grad_q;         // (T, H * d), added to
  float* grad_k;         // (N, ...), added to; rows are grad_key_stride apart
  float* grad_v;
  int64_t grad_key_stride;
};

// Of the CPU; devices have libtorch's (ops/attention_part.h), so that these are not in the table that a
// plug-in brings. Results do not depend on the number of threads.
void cpu_attention_part_forward(const AttentionPartForwardArgs& args);
void cpu_attention_part_backward(const AttentionPartBackwardArgs& args);

}  // namespace moebius::kernels
