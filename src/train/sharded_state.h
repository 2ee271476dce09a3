// The state of a run that lies in pieces on several processes, and checkpoints of whole tensors: a checkpoint
// does not say how the run that wrote it was spread, so any other layout loads it.
//
// Every tensor has one process that brings its pieces together in host memory and writes it: the one that
// holds most of it, and among several such the one with least to write so far. Less than (n - 1) / n of the
// state travels, nothing where every rank has all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "nn/decoder.h"
#include "parallel/communicator.h"
#include "parallel/data_parallel.h"
#include "train/optimizer.h"

namespace moebius::train {

// Part of a tensor of the checkpoint: elements [begin, end) of the flat slice of it that this process's place
// on the mesh gives it (nn/param_slice.h).
struct StatePiece {
  std::string group, name;
  std::vector<int64_t> dims;  // of the whole
  int64_t begin = 0, end = 0;
  at::Tensor values;          // flat; shared with the model or the optimizer
  nn::ParamSlice slice = {};  // of the whole; by default all of it
};

// Parameters and buffers of the model and the state of its optimizer, as far as they lie here.
std::vector<StatePiece> pieces_of(nn::Decoder& decoder, const parallel::DataParallel& parallel,
                                  const AdamW& optimizer);

class ShardedState {
 public:
  // All ranks at once. Together the pieces make whole tensors; ranks that hold the same elements have the
  // same piece. `world` outlives the object.
  ShardedState(std::vector<StatePiece> pieces, parallel::Communicator& world);
  ~ShardedState();

  // All ranks at once: copies the values of this moment and brings them to those who write them. The groups
  // have every tensor of the run; they stay valid until the next call. Host memory: what this rank writes.
  std::span<const ckpt::PendingGroup> capture();

  // Fills the pieces of this rank. UserError as Checkpoint::load.
  void load(const ckpt::Checkpoint& checkpoint);

  // Of all that this rank writes.
  int64_t written_bytes() const;

 private:
  // One tensor, as all ranks know it.
  struct Whole {
    std::string group, name;
    std::vector<int64_t> dims;
    at::ScalarType dtype;
    struct Part {
      nn::ParamSlice slice;
      int64_t begin, end;        // of the slice
      std::vector<int> holders;  // ranks, ascending
      int source = 0;            // the one that gives it away
    };
    std::vector<Part> parts;  // without overlap; all elements
    int writer = 0;
    at::Tensor values;  // on the writer
  };
  void agree();
  void choose_writers();
  const StatePiece& piece_of(const Whole& whole, const Whole::Part& part) const;

  std::vector<StatePiece> pieces_;
  parallel::Communicator& world_;
  std::vector<Whole> wholes_;  // by group and name
  std::vector<ckpt::PendingGroup> groups_;
};

}  // namespace moebius::train
