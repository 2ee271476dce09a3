// Shapes: m queries and n keys of a block, g key heads, r query heads that share one, H = g r, d elements of
// a query or key head, e of a value head.
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "ops/attention_part.h"

namespace moebius::ops::blocks {
namespace {

constexpr int64_t kMostQueries = 512, kLeastQueries = 16;
constexpr float kNone = -std::numeric_limits<float>::infinity();

// (T, heads * d) as (heads, T, d) in fp32.
at::Tensor by_head(const at::Tensor& x, int64_t heads) {
  return x.unflatten(1, {heads, x.size(1) / heads}).transpose(0, 1).to(at::kFloat);
}

// (m, H * d) as (g, r * m, d) in fp32.
at::Tensor queries_by_key_head(const at::Tensor& x, const AttentionShape& shape) {
  return by_head(x, shape.num_heads)
      .reshape({shape.num_kv_heads, shape.num_heads / shape.num_kv_heads * x.size(0), -1});
}

// (g, r * m, d) as (m, H * d).
at::Tensor rows_of_heads(const at::Tensor& x, int64_t num_queries, const AttentionShape& shape) {
  return x.reshape({shape.num_heads, num_queries, x.size(2)}).transpose(0, 1).flatten(1);
}

// Some queries of a piece and all its keys.
struct Part {
  int64_t query, num_queries, key, num_keys, first_seen;
};

std::vector<Part> parts_of(const AttentionPieces& pieces, const AttentionShape& shape, int64_t score_bytes) {
  std::vector<Part> parts;
  for (const kernels::AttentionPiece& piece : pieces) {
    if (piece.num_keys() == 0) continue;
    const int64_t step =
        std::clamp(score_bytes / (4 * piece.num_keys() * shape.num_heads), kLeastQueries, kMostQueries);
    for (int64_t begin = piece.query_begin; begin < piece.query_end; begin += step)
      parts.push_back({begin, std::min(step, piece.query_end - begin), piece.key_begin, piece.num_keys(),
                       piece.first_seen + begin - piece.query_begin});
  }
  return parts;
}

// Scaled scores (H, m, n), minus infinity where a query does not see a key.
at::Tensor scores_of(const at::Tensor& queries, const at::Tensor& keys, const Part& part,
                     const AttentionShape& shape) {
  at::Tensor scores = at::bmm(queries, keys.transpose(1, 2)).mul_(shape.score_scale());
  scores = scores.view({shape.num_heads, part.num_queries, part.num_keys});
  if (part.first_seen >= part.num_keys && shape.window == 0) return scores;
  const auto ints = at::TensorOptions().dtype(at::kLong).device(scores.device());
  // Keys up to each query's own.
  const at::Tensor seen = at::arange(part.first_seen, part.first_seen + part.num_queries, ints).unsqueeze(1);
  const at::Tensor key = at::arange(part.num_keys, ints).unsqueeze(0);
  at::Tensor hidden = key.ge(seen);
  if (shape.window > 0) hidden = hidden.logical_or(key.lt(seen - shape.window));
  return scores.masked_fill_(hidden, kNone);
}

}  // namespace

void attend_to_part(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                    const AttentionShape& shape, AttentionSums& sums, int64_t score_bytes) {
  const int64_t key_width = shape.num_kv_heads * shape.head_dim;
  const at::Tensor q = qkv.narrow(1, 0, shape.num_heads * shape.head_dim), k = kv.narrow(1, 0, key_width),
                   v = kv.slice(1, key_width);
  for (const Part& part : parts_of(pieces, shape, score_bytes)) {
    const at::Tensor own_q = queries_by_key_head(q.narrow(0, part.query, part.num_queries), shape),
                     own_k = by_head(k.narrow(0, part.key, part.num_keys), shape.num_kv_heads),
                     own_v = by_head(v.narrow(0, part.key, part.num_keys), shape.num_kv_heads);
    at::Tensor scores = scores_of(own_q, own_k, part, shape);
    const at::Tensor lse = sums.lse_HT.narrow(1, part.query, part.num_queries),
                     out = sums.out_TC.narrow(0, part.query, part.num_queries)
                               .unflatten(1, {shape.num_heads, shape.value_width()});
    const at::Tensor all = at::logaddexp(lse, at::logsumexp(scores, 2));
    // A query that has seen nothing yet keeps nothing.
    const at::Tensor shift = all.masked_fill(all.eq(kNone), 0);
    out.mul_((lse - shift).exp_().t().unsqueeze(2));
    scores.sub_(shift.unsqueeze(2)).exp_();
    const at::Tensor more = at::bmm(scores.view({shape.num_kv_heads, -1, part.num_keys}), own_v)
                                .view({shape.num_heads, part.num_queries, shape.value_width()});
    out.add_(more.transpose(0, 1));
    lse.copy_(all);
  }
}

void attend_to_part_backward(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                             const AttentionShape& shape, const at::Tensor& out, const AttentionSums& sums,
                             const at::Tensor& grad_out, const at::Tensor& grad_q, const at::Tensor& grad_kv,
                             int64_t score_bytes) {
  const int64_t key_width = shape.num_kv_heads * shape.head_dim;
  const at::Tensor q = qkv.narrow(1, 0, shape.num_heads * shape.head_dim), k = kv.narrow(1, 0, key_width),
                   v = kv.slice(1, key_width), grad_k = grad_kv.narrow(1, 0, key_width),
                   grad_v = grad_kv.slice(1, key_width);
  for (const Part& part : parts_of(pieces, shape, score_bytes)) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, part.query, part.num_queries); };
    const auto keys = [&](const at::Tensor& x) { return x.narrow(0, part.key, part.num_keys); };
    const at::Tensor own_q = queries_by_key_head(rows(q), shape),
                     own_k = by_head(keys(k), shape.num_kv_heads),
                     own_v = by_head(keys(v), shape.num_kv_heads),
                     grad_y = queries_by_key_head(rows(grad_out), shape),
                     y = queries_by_key_head(rows(out), shape);
    const at::Tensor lse = sums.lse_HT.narrow(1, part.query, part.num_queries);
    const at::Tensor weights = scores_of(own_q, own_k, part, shape).sub_(lse.unsqueeze(2)).exp_();
    const at::Tensor mean = (grad_y * y).sum(2).view({shape.num_heads, part.num_queries, 1});
    const std::vector<int64_t> flat{shape.num_kv_heads, -1, part.num_keys};
    at::Tensor grad_scores = at::bmm(grad_y, own_v.transpose(1, 2)).view(weights.sizes());
    grad_scores.sub_(mean).mul_(weights).mul_(shape.score_scale());
    keys(grad_v).add_(at::bmm(weights.view(flat).transpose(1, 2), grad_y).transpose(0, 1).flatten(1));
    keys(grad_k).add_(at::bmm(grad_scores.view(flat).transpose(1, 2), own_q).transpose(0, 1).flatten(1));
    rows(grad_q).add_(rows_of_heads(at::bmm(grad_scores.view(flat), own_k), part.num_queries, shape));
  }
}

}  // namespace moebius::ops::blocks
