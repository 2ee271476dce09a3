// Less memory between forward and backward: whole segments that run a second time in the backward pass (Chen
// et al. 2016, "Training Deep Nets with Sublinear Memory Cost"), and single tensors that are made again (the
// selection after Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models").
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace moebius::nn {

// none: everything is kept. selective: what a pass over memory makes again (outputs of norms, normalised and
// rotated heads, activations), and the up projections of the feed-forward layers, whose outputs are the
// largest tensors. full: only the inputs of a block are kept.
enum class Recompute : uint8_t { none, selective, full };

// What block `layer` does when `recompute` was asked for the first `layers` blocks: those after them keep one
// step more (selective after full, none after selective). layers 0: all blocks are alike.
inline Recompute recompute_of_layer(Recompute recompute, int64_t layers, int64_t layer) {
  if (layers == 0 || layer < layers) return recompute;
  return recompute == Recompute::full ? Recompute::selective : Recompute::none;
}

using Segment = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

// Outputs of segment(inputs). Only the inputs are kept for the backward pass, which runs the segment a second
// time; gradients of parameters that the segment uses go to their .grad as usual. The segment must be a pure
// function that gives the same values both times, its outputs must be defined, and at least one input must
// require grad. With grad mode off this is segment(inputs).
std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, Segment segment);

// Tensors of a stretch of the forward pass that lose their memory at its end and get it back in the backward
// pass. The operators that kept them need not know: the memory is taken from under them and put back before
// they look.
//
//   Discards discards;
//   a = norm(x);   discards.add(a, [=] { return norm(x); });
//   y = discards.finish(product(a));
class Discards {
 public:
  // `tensor` must own all of its storage, and nothing may read it between finish() and the backward pass.
  // `make` gives its values again, bit for bit, from tensors that are kept or were added before; it runs
  // without autograd.
  void add(const at::Tensor& tensor, std::function<at::Tensor()> make);

  // Takes the memory. Returns `output`, through which every gradient that leads to users of the tensors must
  // come: its backward makes them again, in the order in which they were added. Does nothing when `output`
  // requires no grad.
  at::Tensor finish(const at::Tensor& output);

  struct Entry {
    at::Tensor tensor;
    std::function<at::Tensor()> make;
  };

 private:
  std::vector<Entry> entries_;
};

// True while a segment runs for the second time, so that statistics are not counted twice.
bool recomputing();

}  // namespace moebius::nn
