// RMSNorm of rows whose width is split over ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "parallel/communicator.h"

namespace moebius::parallel {

// ops::add_rms_norm (ops::rms_norm where delta is undefined) of rows of `row.size()` equal parts, of which
// this rank has one, x_TD, with its part of the weight. Two numbers per token are summed over the row, one in
// each pass, in fp32. Returns {x + delta, its norm}; the gradient of the weight is that of these tokens.
std::pair<at::Tensor, at::Tensor> split_rms_norm(Communicator& row, const at::Tensor& x_TD,
                                                 const at::Tensor& delta_TD, const at::Tensor& weight_D,
                                                 double eps);

}  // namespace moebius::parallel
