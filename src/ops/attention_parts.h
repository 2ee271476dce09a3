// Views of the fused projection that the forms of attention share. Shapes: T tokens, B documents of S tokens
// each, H query heads, G key and value heads, d elements of a query or key head, e of a value head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "ops/attention.h"

namespace moebius::ops {

struct AttentionParts {
  at::Tensor q, k, v;
};

// (T, H, d), (T, G, d), (T, G, e): the columns of a (T, C) tensor.
AttentionParts split_heads(const at::Tensor& qkv_TC, const AttentionShape& shape);

// (T, heads, d) as (B, heads, S, d).
at::Tensor by_document(const at::Tensor& x, int64_t length);
AttentionParts by_document(const AttentionParts& parts, int64_t length);

// First and last token of a run of documents of one length.
struct DocumentRun {
  int64_t begin, end, length;
};
std::vector<DocumentRun> runs_of(const Segments& segments);

AttentionParts rows_of(const AttentionParts& parts, const DocumentRun& run);

}  // namespace moebius::ops
