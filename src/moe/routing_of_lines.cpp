// Shapes: T tokens of this line, S segments, E experts, K experts per token.
#include "moe/routing_of_lines.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>

#include "moe/segment_counts.h"

namespace moebius::moe {

void add_lines(const nn::TensorAxis* axis, int64_t num_tokens, const at::Tensor& segments_T,
               int64_t num_segments, ops::Routing& routing) {
  if (nn::tokens_of(axis).size == 1) return;
  const int64_t num_experts = routing.counts_E.size(0), top_k = routing.experts_TK.size(1);
  const auto own = static_cast<double>(routing.experts_TK.size(0)), all = static_cast<double>(num_tokens);
  const at::Tensor counts_SE = counts_by_segment(routing, segments_T).flatten();
  const int64_t num_sums = num_segments * num_experts;
  const at::Tensor sums = axis->sum_of_lines(
      at::cat({routing.prob_sum_SE.flatten(), (routing.z_loss * own).unsqueeze(0), counts_SE,
               (routing.entropy * own).unsqueeze(0), routing.offsets_E1.to(at::kFloat)}));
  const at::Tensor counted = sums.detach().narrow(0, num_sums + 1, num_sums + num_experts + 2);
  routing.prob_sum_SE = sums.narrow(0, 0, num_sums).view({num_segments, num_experts});
  routing.z_loss = sums.select(0, num_sums) / all;
  const at::Tensor all_counts_SE = counted.narrow(0, 0, num_sums).view({num_segments, num_experts});
  routing.counts_E = all_counts_SE.sum(0);
  routing.entropy = counted.select(0, num_sums) / all;
  routing.offsets_E1 = counted.narrow(0, num_sums + 1, num_experts + 1).to(at::kInt);
  // As in ops::route.
  const double shared =
      static_cast<double>(num_experts) * static_cast<double>(top_k) / static_cast<double>(num_segments);
  const at::Tensor coefficient_SE =
      all_counts_SE / all_counts_SE.sum(1, true).clamp_min_(1.0).square_().mul_(1.0 / shared);
  routing.aux_loss = at::dot(coefficient_SE.flatten(), routing.prob_sum_SE.flatten());
}

}  // namespace moebius::moe
