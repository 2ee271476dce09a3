// Data parallelism with the ZeRO stages (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training
// Trillion Parameter Models"; stage 3 by blocks as in Zhao et al. 2023, "PyTorch FSDP"). All ranks of the
// shard axis see other micro-batches of the same step:
//
//   stage  parameters        gradients             optimizer state   bytes sent per step, of payload P
//   0      whole             whole                 whole             2 (n-1)/n P
//   1      whole             whole, then a shard   a shard           2 (n-1)/n P
//   2      whole             a shard               a shard           (n-1)/n (M + 1) P   M micro-batches
//   3      a shard, blocks   a shard               a shard           (n-1)/n (M + 2 M) P
//          gathered for use
//
// Shards are made of 1/n of the elements of each bucket (flat_bucket.h). In stage 3 what belongs to no block
// (embeddings, final norm, output layer) is kept whole as in stage 2.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "nn/param.h"
#include "nn/param_gate.h"
#include "parallel/flat_bucket.h"
#include "parallel/flat_weights.h"
#include "parallel/gradient_buckets.h"

namespace moebius::parallel {

// Part of a parameter that one process updates.
struct OwnedSlice {
  nn::Param* param = nullptr;
  int64_t begin = 0, end = 0;  // elements of what this process holds of the parameter, flat
  at::Tensor value, grad;      // flat; `grad` undefined: that of the parameter
};

struct DataParallelOptions {
  int64_t zero_stage = 0;
  int64_t bucket_bytes = int64_t{25} << 20;
  // Buckets end where blocks do, as they always do in stage 3.
  bool by_block = false;
  // False for what another rank of the run counts in the global norm, because both hold the same values
  // though they are no replicas of the data axis. Empty: everything is counted here.
  std::function<bool(const nn::Param&)> counts = {};
  // True for a parameter that shares no bucket with others. Empty: none.
  std::function<bool(const nn::Param&)> is_alone = {};
};

class Mesh;

// The axes of a run. In stage 0 all ranks with other data form one axis; otherwise parallel.fsdp is the shard
// axis (with parallel.cp ranks of both together), with parallel.dp copies, and the state of experts is cut
// over all ranks that hold the same ones.
DataAxes data_axes(const Mesh& mesh, int64_t zero_stage);

class DataParallel final : public nn::ParamGate {
 public:
  // The parameters have their memory and values, the same on all ranks of an axis. In stages 1 to 3 they are
  // moved, and only the passes of a decoder that this object is the gate of may read them, unless
  // gather_all() is called before; in stage 3 those of blocks are gone between their uses. The table and the
  // axes outlive this object; so do the parameters' tensors.
  DataParallel(nn::ParamTable& params, const DataAxes& axes, const DataParallelOptions& options);
  ~DataParallel() override;

  // A step is: for each micro-batch begin_backward, backward, end_backward; then finish_gradients,
  // sum_of_squares, an update of slices(), finish_update.
  // `arrives`: see GradientBuckets::begin.
  void begin_backward(bool is_last, const std::function<bool(const nn::Param&)>& arrives = {}) {
    gradients_->begin(is_last, arrives);
  }
  void end_backward() { gradients_->end(); }
  void finish_gradients() { gradients_->finish(); }
  // Of the gradients of the whole model, every element counted once; fp32 scalar, the same on all ranks.
  at::Tensor sum_of_squares() const;
  // Gradients are gone, and the updated parameters are on their way to every rank: the gate waits for those
  // of a block when a forward pass comes to it (in stage 3 it gathers them then).
  void finish_update();

  // What this rank updates, in the order of the table. Stage 0: all parameters, whole.
  std::vector<OwnedSlice> slices() const;
  const std::vector<FlatBucket>& buckets() const { return buckets_; }
  int64_t zero_stage() const { return options_.zero_stage; }
  // After finish_gradients(): the sums of a bucket that this rank updates with, flat; of stage 0 all.
  const at::Tensor& gradient(size_t bucket) const {
    return options_.zero_stage == 0 ? gradients_->whole(bucket) : gradients_->shard(bucket);
  }

  // For work on all parameters at once: they are whole until release_all() or finish_update(). Called by all
  // ranks.
  void gather_all();
  void release_all();

  // From slices to parameters, after slices have been written by others (a checkpoint). Called by all ranks.
  void slices_changed() { finish_update(); }

  struct Bytes {
    int64_t parameters = 0, gradients = 0;
  };
  Bytes held_bytes() const;
  // The most that was held at any moment of the steps so far.
  Bytes peak_bytes() const { return {peak_parameters_, gradients_->peak_bytes()}; }

  // nn::ParamGate
  void before(int64_t block, nn::Pass pass) override;
  void after(int64_t block, nn::Pass pass) override;

 private:
  int64_t num_blocks() const { return static_cast<int64_t>(buckets_of_block_.size()); }
  void start_gather(int64_t block);
  void note_parameters();
  // Shards of gradients that this rank counts in the norm.
  std::vector<at::Tensor> counted_gradients() const;

  nn::ParamTable& params_;
  DataAxes axes_;
  DataParallelOptions options_;
  std::vector<FlatBucket> buckets_;
  std::vector<FlatWeights> weights_;  // of each bucket; none in stage 0
  std::unique_ptr<GradientBuckets> gradients_;
  std::vector<std::vector<size_t>> buckets_of_block_;  // that hold parameters of it
  int64_t peak_parameters_ = 0;
};

}  // namespace moebius::parallel
