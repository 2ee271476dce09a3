// Routing on a grid of tensor ranks, whose lines route different tokens of one micro-batch.
#pragma once

#include <cstdint>

#include "nn/tensor_axis.h"
#include "ops/route.h"

namespace moebius::moe {

// What ops::route sums over tokens, of the tokens of all lines: losses, counts, entropy, sums of
// probabilities and the offsets of rows become those of num_tokens tokens, alike on all ranks and with the
// gradients of this line's tokens; choices, weights and rows stay this line's. segments_T: the segment of
// each of this line's tokens, or undefined for one segment (of num_segments). One exchange; without lines
// nothing happens.
void add_lines(const nn::TensorAxis* axis, int64_t num_tokens, const at::Tensor& segments_T,
               int64_t num_segments, ops::Routing& routing);

}  // namespace moebius::moe
