// What a routing gives each expert, by segment of the tokens (a sequence of a micro-batch, or all of it).
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/route.h"

namespace moebius::moe {

// Slots that each segment gives to each expert, (S, E) fp32, exact in any order; without gradients. S is that
// of routing.prob_sum_SE; segment_of_T: the segment of each token of routing.experts_TK, not read for one.
at::Tensor counts_by_segment(const ops::Routing& routing, const at::Tensor& segment_of_T);

}  // namespace moebius::moe
