// Attention to parts of the keys through libtorch's flash kernels, which exist on CUDA alone. (Dao 2023,
// "FlashAttention-2")
#pragma once

#include "ops/attention_part.h"

namespace moebius::ops::flash {

// bf16 heads of equal widths, a multiple of 8 up to 256, and pieces that are whole squares under the diagonal
// or triangles.
bool takes(const at::Tensor& qkv_TC, const AttentionPieces& pieces, const AttentionShape& shape);

void attend_to_part(const at::Tensor& qkv_TC, const at::Tensor& kv_NW, const AttentionPieces& pieces,
                    const AttentionShape& shape, AttentionSums& sums);
void attend_to_part_backward(const at::Tensor& qkv_TC, const at::Tensor& kv_NW, const AttentionPieces& pieces,
                             const AttentionShape& shape, const at::Tensor& out_TC, const AttentionSums& sums,
                             const at::Tensor& grad_out_TC, const at::Tensor& grad_q_TC,
                             const at::Tensor& grad_kv_NW);

}  // namespace moebius::ops::flash
