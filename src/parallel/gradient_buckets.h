// Gradients summed over the data axis while the backward pass still runs: as soon as the last gradient of a
// bucket is complete, its reduction is started; the next operators compute meanwhile.
//
// Collectives are started in the order of the buckets, whichever gradients exist: a bucket waits for those
// before it, and end() starts what is left. A gradient that this rank does not have counts as zeros.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/flat_bucket.h"

namespace moebius::parallel {

class GradientBuckets {
 public:
  // What becomes of the gradients of a bucket.
  enum class Keep : uint8_t {
    whole,           // every rank has the sum of all (all-reduce); ZeRO 0
    whole_till_end,  // summed over the micro-batches on each rank, then cut into shards; ZeRO 1
    shard            // cut into shards after each micro-batch, and the rest released; ZeRO 2 and 3
  };

  // Puts hooks on the parameters, which must stay the same tensors while this object lives. The buckets
  // outlive it.
  GradientBuckets(const std::vector<FlatBucket>& buckets, Keep keep);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  // From now on end_block() starts buckets, never their last gradient: other collectives on the same axis
  // then have a fixed place between them.
  void start_by_block() { starts_by_block_ = true; }

  // Around the backward pass of each micro-batch of a step; `is_last` of the step. Outside, gradients of
  // parameters are what autograd makes them. Between end() and the next begin() sums may still be under way.
  // A backward pass that is made in parts has begin() and end() around each; `arrives`, of the last part: the
  // parameters whose gradients come in it, so that buckets do not wait for others. Empty: all.
  void begin(bool is_last, const std::function<bool(const nn::Param&)>& arrives = {});
  // All gradients of the block, and of what is behind it in the model, are complete.
  void end_block(int64_t block);
  void end();

  // After the last micro-batch: waits for the sums. With Keep::whole every parameter now has its gradient.
  void finish();

  // This rank's part of the sums of a bucket, flat; always the same memory, with the values of a step from
  // finish() to the next begin().
  const at::Tensor& shard(size_t bucket) const { return states_[bucket].shard; }

  // The same of all ranks, where every rank keeps it (Keep::whole).
  const at::Tensor& whole(size_t bucket) const { return states_[bucket].whole; }

  // Gradients of the parameters are gone; what a step in the middle has left (an error) is waited for.
  void release();

  // Memory that is held now, and the most that was.
  int64_t held_bytes() const { return held_bytes_; }
  int64_t peak_bytes() const { return peak_bytes_; }

 private:
  class Hook;
  struct State {
    at::Tensor whole, shard, incoming;  // incoming: the shard of a later micro-batch
    std::vector<bool> has_gradient;     // entries whose place in `whole` is filled
    std::vector<bool> has_arrived;      // in this micro-batch
    int64_t num_arrived = 0;
    bool is_started = false;  // in this micro-batch
    bool has_sum = false;     // an earlier micro-batch is in `shard`
    Pending pending;
  };

  bool reduces() const { return is_last_ || keep_ == Keep::shard; }
  at::Tensor place_of(State& state, const FlatBucket& bucket, const FlatEntry& entry);
  void on_gradient(size_t bucket, size_t entry, const at::Tensor& param);
  void start_next();
  // Waits for the reduction of a bucket and adds it up.
  void settle(size_t bucket);
  // The buckets whose turn it is, as far as they are done.
  void settle_done();
  void hold(int64_t bytes);

  const std::vector<FlatBucket>& buckets_;
  Keep keep_;
  bool starts_by_block_ = false;
  std::vector<State> states_;
  bool is_active_ = false, is_last_ = false;
  size_t next_ = 0;          // the bucket that is started next
  size_t next_settled_ = 0;  // of those started
  int64_t held_bytes_ = 0, peak_bytes_ = 0;
};

}  // namespace moebius::parallel
