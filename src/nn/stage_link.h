// What a decoder asks of the processes that hold its other layers (pipeline), and which layers are here. The
// interface lives here with its caller; parallel/stage_link.h implements it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace moebius::nn {

// Passes without autograd: a training step moves activations and gradients itself, in the order of its
// schedule (parallel/pipeline.h).
class StageLink {
 public:
  virtual ~StageLink() = default;

  // What the piece before `piece` has computed; blocks until it is there. On a GPU the current stream waits.
  virtual void receive(int piece, const at::Tensor& out) const = 0;
  // To the process that has `piece`. Returns at once.
  virtual void send(int piece, const at::Tensor& x) const = 0;
  // Values of the last stage, to all of them.
  virtual void share_last(const at::Tensor& inout) const = 0;
};

struct LayerRange {
  int64_t begin = 0, end = 0;

  bool has(int64_t layer) const { return layer >= begin && layer < end; }
};

// A decoder whose layers are dealt out to the stages of a pipeline.
struct DecoderPieces {
  std::vector<LayerRange> layers;  // of each piece of the model, in order
  int stage = 0, stages = 1;       // this process has the pieces stage, stage + stages, …
  std::shared_ptr<const StageLink> link;

  int num_chunks() const { return static_cast<int>(layers.size()) / stages; }
  int piece_of(int chunk) const { return chunk * stages + stage; }
  bool is_last(int piece) const { return piece + 1 == static_cast<int>(layers.size()); }
  bool has_first() const { return stage == 0; }
  bool has_last() const { return stage + 1 == stages; }
  bool has_layer(int64_t layer) const {
    for (int chunk = 0; chunk < num_chunks(); ++chunk)
      if (layers[static_cast<size_t>(piece_of(chunk))].has(layer)) return true;
    return false;
  }
};

}  // namespace moebius::nn
