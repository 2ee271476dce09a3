// Shapes: T new positions of N, H query heads, G key heads, d elements of a query or key head, e of a value
// head.
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "ops/attention.h"
#include "ops/attention_blocks.h"

namespace moebius::ops {
namespace {

// (T, H * e) of weights over the keys and, beside them, the sinks.
at::Tensor with_sinks(const at::Tensor& q_HTd, const at::Tensor& keys_GNd, const at::Tensor& values_GNe,
                      const at::Tensor& seen_TN, double scale, const at::Tensor& sinks_H) {
  const int64_t heads = q_HTd.size(0), count = q_HTd.size(1), groups = keys_GNd.size(0);
  const std::vector<int64_t> grouped{groups, heads / groups * count, -1};
  at::Tensor scores = at::bmm(q_HTd.to(at::kFloat).reshape(grouped), keys_GNd.to(at::kFloat).transpose(1, 2))
                          .mul_(scale)
                          .view({heads, count, -1});
  scores.masked_fill_(seen_TN.logical_not(), -std::numeric_limits<float>::infinity());
  const at::Tensor lse =
      at::logaddexp(at::logsumexp(scores, {2}), sinks_H.to(at::kFloat).unsqueeze(1)).unsqueeze(2);
  const at::Tensor y = at::bmm(scores.sub_(lse).exp_().view(grouped), values_GNe.to(at::kFloat));
  return y.view({heads, count, -1}).transpose(0, 1).reshape({count, -1}).to(q_HTd.scalar_type());
}

}  // namespace

at::Tensor attention_with_cache(const at::Tensor& q_HTd, const at::Tensor& keys_GNd,
                                const at::Tensor& values_GNe, const AttentionShape& shape,
                                const at::Tensor& sinks_H) {
  const int64_t count = q_HTd.size(1), all = keys_GNd.size(1);
  MOEBIUS_CHECK(q_HTd.size(0) == shape.num_heads && keys_GNd.size(0) == shape.num_kv_heads &&
                    values_GNe.size(1) == all && count <= all,
                "queries ", q_HTd.sizes(), ", keys ", keys_GNd.sizes(), ", values ", values_GNe.sizes());
  // Nothing before the window of the first new position is seen.
  const int64_t kept = shape.window > 0 ? std::min(all, count + shape.window - 1) : all;
  const at::Tensor keys = keys_GNd.narrow(1, all - kept, kept),
                   values = values_GNe.narrow(1, all - kept, kept);
  if (sinks_H.defined())
    return with_sinks(q_HTd, keys, values, seen_keys(count, kept, shape.window, q_HTd.device()),
                      shape.score_scale(), sinks_H);
  // A position by itself sees all that is kept, and without a window a whole sequence is plainly causal.
  const bool slides = shape.window > 0 && shape.window < kept;
  std::optional<at::Tensor> mask;
  if (count > 1 && (kept > count || slides)) mask = seen_keys(count, kept, shape.window, q_HTd.device());
  const at::Tensor y_1HTe = at::scaled_dot_product_attention(
      q_HTd.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), mask, 0.0, count > 1 && !mask,
      shape.scale > 0 ? std::optional<double>(shape.scale) : std::nullopt,
      shape.num_heads != shape.num_kv_heads);
  return y_1HTe.squeeze(0).transpose(0, 1).reshape({count, shape.out_width()});
}

}  // namespace moebius::ops
