// Parameters that travel together: a bucket is one flat tensor with a place for each of them, cut evenly
// among the ranks that share one copy of their optimizer state (ZeRO: Rajbhandari et al. 2020). The layout is
// a pure function of the declarations, so that all ranks have the same one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "nn/param.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// The ranks that hold the same parameters and see other data. `shard` cuts what the ZeRO stage says among
// them; its copies lie along `replica` (null: there is one).
struct DataAxis {
  Communicator* shard = nullptr;
  Communicator* replica = nullptr;
};

struct DataAxes {
  DataAxis dense;
  DataAxis expert;                // of the parameters of class expert
  Communicator* world = nullptr;  // all ranks of the run
};

// Embeddings, final norm, output layer: what belongs to no block.
inline constexpr int64_t kOutsideBlocks = -1;

// The block that a parameter belongs to, from its name ("layers.3.attention.qkv": 3).
int64_t block_of(const nn::ParamSpec& spec);

struct FlatEntry {
  nn::Param* param;
  int64_t offset;  // of its first element
  int64_t size;    // elements that this process holds of it
};

struct FlatBucket {
  const DataAxis* axis = nullptr;
  at::ScalarType dtype = at::kFloat;
  at::Device device{at::kCPU};
  int64_t block = kOutsideBlocks;  // kOutsideBlocks also for buckets over several blocks
  std::vector<FlatEntry> entries;
  int64_t size = 0;  // elements, gaps included; a multiple of the ranks

  at::TensorOptions options() const { return at::TensorOptions().dtype(dtype).device(device); }
  int num_ranks() const { return axis->shard->size(); }
  int64_t shard_size() const { return size / num_ranks(); }
  int64_t shard_begin() const { return shard_size() * axis->shard->rank(); }
};

// What rank `rank` of the shard axis has of entry `entry`: elements [begin, end) of the parameter, at
// `offset` of the rank's shard; empty when begin == end.
struct ShardPart {
  int64_t begin, end, offset;
};
ShardPart part_of(const FlatBucket& bucket, const FlatEntry& entry, int rank);

// How large the buckets of these parameters are made: `most_bytes`, or a sixteenth of them all where that is
// less, since the last bucket of a backward pass has nothing left to hide behind; but no less than 256 KiB,
// where exchanges are made of latency. A function of the declarations alone.
int64_t bucket_bytes_for(const nn::ParamTable& params, int64_t most_bytes);

// Buckets of about `bucket_bytes` (a larger parameter has its own) in the order in which the backward pass
// completes them: that of the declarations, backwards. Every parameter with a gradient is in one; they must
// have their memory. `by_block`: no bucket holds parameters of two blocks. `is_alone` (may be empty): the
// parameter has a bucket to itself. `axes` outlives the buckets.
//
// A parameter of 4,096 elements and more is cut only at multiples of 256 of its elements, so that blocks of
// eight-bit moments (kernels/api/moment_codes.h) stay whole.
std::vector<FlatBucket> make_buckets(nn::ParamTable& params, const DataAxes& axes, int64_t bucket_bytes,
                                     bool by_block,
                                     const std::function<bool(const nn::Param&)>& is_alone = {});

}  // namespace moebius::parallel
