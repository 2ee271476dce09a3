// Attention in blocks of queries, by libtorch's operators: what no fused kernel of a device takes (windows,
// sinks). Scores in fp32 exist for one block of queries of some heads at a time, in the backward pass too,
// which computes them again from the kept logarithms of their sums; memory grows with the number of tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/attention.h"

namespace moebius::ops {

// As ops::attention, on any device, without host synchronisation. `score_bytes`: how much the scores of a
// block may take.
at::Tensor attention_in_blocks(const at::Tensor& qkv_TC, const Segments& segments,
                               const AttentionShape& shape, const at::Tensor& sinks_H = {},
                               int64_t score_bytes = int64_t{128} << 20);

// Which of `num_keys` keys each of `num_queries` queries sees, (queries, keys) of bool: those up to its own,
// the last query being at the last key, and at most `window` of them where that is above 0.
at::Tensor seen_keys(int64_t num_queries, int64_t num_keys, int64_t window, at::Device device);

}  // namespace moebius::ops
