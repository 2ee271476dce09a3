// Activation checkpointing: forward without recording, and again with recording in the backward pass.
// (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace moebius::nn {

using Segment = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

// Outputs of segment(inputs). Only the inputs are kept for the backward pass, which runs the segment a second
// time; gradients of parameters that the segment uses go to their .grad as usual. The segment must be a pure
// function that gives the same values both times, its outputs must be defined, and at least one input must
// require grad. With grad mode off this is segment(inputs).
std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, Segment segment);

// True while a segment runs for the second time, so that statistics are not counted twice.
bool recomputing();

}  // namespace moebius::nn
