// The parameters of buckets in flat memory, each rank in charge of its shard of it: whole on every rank and
// refreshed after each update (ZeRO 1 and 2), or gone between uses (ZeRO 3).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "parallel/flat_bucket.h"

namespace moebius::parallel {

class FlatWeights {
 public:
  // Moves the parameters of the bucket into one flat memory; their values stay. With `is_released` only the
  // shard is kept until gather().
  FlatWeights(const FlatBucket& bucket, bool is_released);
  FlatWeights(FlatWeights&&) noexcept = default;

  // This rank's part, flat; always the same memory.
  const at::Tensor& shard() const { return shard_; }

  // Starts to bring the shards of all ranks together; wait() before the parameters are read. A second start
  // does nothing.
  void start_gather();
  void wait();
  // Shards have changed: what was gathered is not valid any more. Released weights go.
  void changed();
  // Frees what is not kept between uses.
  void release();
  bool is_gathered() const { return is_gathered_; }

  int64_t held_bytes() const;

 private:
  const FlatBucket* bucket_;
  bool is_released_;
  at::Tensor whole_;  // all parameters are views of its storage, which is empty while released
  at::Tensor shard_;
  bool is_gathered_;
  Pending pending_;
};

}  // namespace moebius::parallel
