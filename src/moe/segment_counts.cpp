#include "moe/segment_counts.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

namespace moebius::moe {

at::Tensor counts_by_segment(const ops::Routing& routing, const at::Tensor& segment_of_T) {
  const int64_t segments = routing.prob_sum_SE.size(0), experts = routing.prob_sum_SE.size(1);
  if (segments == 1) return routing.counts_E.unsqueeze(0);
  const at::NoGradGuard no_grad;
  const at::Tensor cell_TK =
      routing.experts_TK.to(at::kLong) + segment_of_T.to(at::kLong).unsqueeze(1) * experts;
  const at::Tensor ones = at::ones({cell_TK.numel()}, routing.counts_E.options());
  return at::zeros({segments * experts}, ones.options())
      .scatter_add_(0, cell_TK.flatten(), ones)
      .view({segments, experts});
}

}  // namespace moebius::moe
