// Attention of the queries that a process has to keys that come to it part by part (ring attention). What a
// query has got so far is a weighted mean of values and the logarithm of its sum of exponentials; the
// backward pass computes the weights of each part again from the logarithms of all, so that the order of the
// parts does not matter. No autograd here: parallel/ring_attention.h has it. (Liu et al. 2023, "Ring
// Attention with Blockwise Transformers for Near-Infinite Context"; Dao et al. 2022, "FlashAttention")
//
// Shapes: T queries of this process, N keys of a part, H query heads of d, Hk key heads of d and value heads
// of e, W = Hk (d + e).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/api/attention_part.h"
#include "ops/attention.h"

namespace moebius::ops {

using AttentionPiece = kernels::AttentionPiece;
using AttentionPieces = std::vector<AttentionPiece>;

// What the queries have got so far.
struct AttentionSums {
  at::Tensor out_TC;                // (T, H * e) fp32
  at::Tensor lse_HT;                // fp32
  at::Tensor random_state, unused;  // of the last pass of a fused kernel, whose backward wants them
};

// Before any key. sinks_H, where defined: see ops::attention.
AttentionSums begin_attention(const at::Tensor& qkv_TC, const AttentionShape& shape,
                              const at::Tensor& sinks_H = {});

// The keys and values of the fused projection, (T, W), in memory of their own: what travels.
at::Tensor keys_and_values(const at::Tensor& qkv_TC, const AttentionShape& shape);

// Adds what the queries of qkv_TC get from the keys and values of a part. qkv_TC and kv_NW are contiguous, in
// fp32 or bf16. Pieces as in kernels/api/attention_part.h. On the CPU the project's own kernel; on CUDA in
// bf16 without a window libtorch's flash kernels, else its operators in blocks.
void attend_to_part(const at::Tensor& qkv_TC, const at::Tensor& kv_NW, const AttentionPieces& pieces,
                    const AttentionShape& shape, AttentionSums& sums);

// The gradients, added to grad_q_TC (T, H * d) and grad_kv_NW (N, W), both fp32. out_TC in the dtype of
// qkv_TC and sums.lse_HT are those of all parts; grad_out_TC contiguous.
void attend_to_part_backward(const at::Tensor& qkv_TC, const at::Tensor& kv_NW, const AttentionPieces& pieces,
                             const AttentionShape& shape, const at::Tensor& out_TC, const AttentionSums& sums,
                             const at::Tensor& grad_out_TC, const at::Tensor& grad_q_TC,
                             const at::Tensor& grad_kv_NW);

// Of the sinks, (H) fp32: what the queries here give.
at::Tensor sinks_gradient(const at::Tensor& sinks_H, const at::Tensor& out_TC, const at::Tensor& lse_HT,
                          const at::Tensor& grad_out_TC);

// The same by libtorch's operators in blocks, on any device.
namespace blocks {
void attend_to_part(const at::Tensor& qkv_TC, const at::Tensor& kv_NW, const AttentionPieces& pieces,
                    const AttentionShape& shape, AttentionSums& sums,
                    int64_t score_bytes = int64_t{128} << 20);
void attend_to_part_backward(const at::Tensor& qkv_TC, const at::Tensor& kv_NW, const AttentionPieces& pieces,
                             const AttentionShape& shape, const at::Tensor& out_TC, const AttentionSums& sums,
                             const at::Tensor& grad_out_TC, const at::Tensor& grad_q_TC,
                             const at::Tensor& grad_kv_NW, int64_t score_bytes = int64_t{128} << 20);
}  // namespace blocks

}  // namespace moebius::ops
