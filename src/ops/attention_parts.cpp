#include "ops/attention_parts.h"

#include <ATen/ATen.h>

namespace moebius::ops {

AttentionParts split_heads(const at::Tensor& qkv_TC, const AttentionShape& shape) {
  const int64_t d = shape.head_dim, e = shape.value_width();
  const int64_t query_width = shape.num_heads * d, key_width = shape.num_kv_heads * d;
  return {qkv_TC.narrow(1, 0, query_width).unflatten(1, {shape.num_heads, d}),
          qkv_TC.narrow(1, query_width, key_width).unflatten(1, {shape.num_kv_heads, d}),
          qkv_TC.narrow(1, query_width + key_width, shape.num_kv_heads * e)
              .unflatten(1, {shape.num_kv_heads, e})};
}

at::Tensor by_document(const at::Tensor& x, int64_t length) {
  return x.unflatten(0, {x.size(0) / length, length}).transpose(1, 2);
}

AttentionParts by_document(const AttentionParts& parts, int64_t length) {
  return {by_document(parts.q, length), by_document(parts.k, length), by_document(parts.v, length)};
}

std::vector<DocumentRun> runs_of(const Segments& segments) {
  std::vector<DocumentRun> runs;
  const auto& cu = segments.cu_seqlens;
  for (size_t i = 0; i + 1 < cu.size(); ++i) {
    const int64_t length = cu[i + 1] - cu[i];
    if (length == 0) continue;
    if (!runs.empty() && runs.back().length == length) {
      runs.back().end = cu[i + 1];
    } else {
      runs.push_back({cu[i], cu[i + 1], length});
    }
  }
  return runs;
}

AttentionParts rows_of(const AttentionParts& parts, const DocumentRun& run) {
  const int64_t count = run.end - run.begin;
  return {parts.q.narrow(0, run.begin, count), parts.k.narrow(0, run.begin, count),
          parts.v.narrow(0, run.begin, count)};
}

}  // namespace moebius::ops
