#include "parallel/data_parallel.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>

#include "base/check.h"
#include "ops/optimizer.h"
#include "parallel/mesh.h"
#include "telemetry/trace.h"

namespace moebius::parallel {
namespace {

GradientBuckets::Keep keep_of(int64_t zero_stage) {
  if (zero_stage == 0) return GradientBuckets::Keep::whole;
  return zero_stage == 1 ? GradientBuckets::Keep::whole_till_end : GradientBuckets::Keep::shard;
}

}  // namespace

DataAxes data_axes(const Mesh& mesh, int64_t zero_stage) {
  const Layout& layout = mesh.layout();
  DataAxes axes;
  axes.world = &mesh.world();
  axes.expert.shard = &mesh.on(Axis::expert_data);
  if (zero_stage == 0) {
    // An axis that nothing else uses where there is one: small sums of a forward pass (load_sum.h) do not
    // queue behind gradients then.
    axes.dense.shard = &mesh.data();
    for (const Axis axis : {Axis::dp, Axis::fsdp})
      if (layout.size(axis) == layout.size(Axis::data)) axes.dense.shard = &mesh.on(axis);
  } else {
    axes.dense.shard = &mesh.on(layout.size(Axis::cp) > 1 ? Axis::shard : Axis::fsdp);
    axes.dense.replica = &mesh.on(Axis::dp);
  }
  return axes;
}

DataParallel::DataParallel(nn::ParamTable& params, const DataAxes& axes, const DataParallelOptions& options)
    : params_(params), axes_(axes), options_(options) {
  MOEBIUS_CHECK(options.zero_stage >= 0 && options.zero_stage <= 3, "ZeRO stage ", options.zero_stage);
  const bool frees_blocks = options.zero_stage == 3;
  buckets_ =
      make_buckets(params, axes_, options.bucket_bytes, options.by_block || frees_blocks, options.is_alone);
  if (options.zero_stage > 0) {
    weights_.reserve(buckets_.size());
    for (const FlatBucket& bucket : buckets_)
      weights_.emplace_back(bucket, frees_blocks && bucket.block != kOutsideBlocks);
  }
  for (size_t b = 0; b < buckets_.size(); ++b) {
    for (const FlatEntry& entry : buckets_[b].entries) {
      const int64_t block = block_of(entry.param->spec);
      if (block == kOutsideBlocks) continue;
      if (block >= num_blocks()) buckets_of_block_.resize(static_cast<size_t>(block) + 1);
      std::vector<size_t>& of_block = buckets_of_block_[static_cast<size_t>(block)];
      if (of_block.empty() || of_block.back() != b) of_block.push_back(b);
    }
  }
  gradients_ = std::make_unique<GradientBuckets>(buckets_, keep_of(options.zero_stage));
  if (frees_blocks) gradients_->start_by_block();
  note_parameters();
}

DataParallel::~DataParallel() = default;

std::vector<at::Tensor> DataParallel::counted_gradients() const {
  std::vector<at::Tensor> counted;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const FlatBucket& bucket = buckets_[b];
    // Along the replicas all have the same shard: the first one counts.
    if (bucket.axis->replica != nullptr && bucket.axis->replica->rank() != 0) continue;
    for (const FlatEntry& entry : bucket.entries) {
      if (options_.counts && !options_.counts(*entry.param)) continue;
      // What tensor ranks hold alike is counted by the first of them.
      if (!nn::counts_once(entry.param->spec.sharding, params_.shards())) continue;
      const ShardPart part = part_of(bucket, entry, bucket.axis->shard->rank());
      if (part.begin < part.end)
        counted.push_back(gradients_->shard(b).narrow(0, part.offset, part.end - part.begin));
    }
  }
  return counted;
}

at::Tensor DataParallel::sum_of_squares() const {
  const at::NoGradGuard no_grad;
  at::Tensor sum = ops::sum_of_squares(counted_gradients());
  if (!buckets_.empty()) sum = sum.to(buckets_.front().device);
  axes_.world->all_reduce(sum).wait();
  return sum;
}

void DataParallel::finish_update() {
  gradients_->release();
  for (FlatWeights& weights : weights_) weights.changed();
  // The first to be used again is the last that was declared backwards: the embedding, before any block. It
  // has the link to itself.
  for (size_t b = weights_.size(); b > 0; --b) {
    if (options_.zero_stage == 3 && buckets_[b - 1].block != kOutsideBlocks) continue;
    weights_[b - 1].start_gather();
    if (b == weights_.size()) weights_[b - 1].wait();
  }
}

std::vector<OwnedSlice> DataParallel::slices() const {
  std::vector<OwnedSlice> slices;
  if (options_.zero_stage == 0) {
    for (nn::Param& param : params_.params())
      if (!param.spec.is_buffer)
        slices.push_back({&param, 0, param.value.numel(), param.value.detach().view({-1}), {}});
    return slices;
  }
  std::map<const nn::Param*, OwnedSlice> by_param;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    for (const FlatEntry& entry : buckets_[b].entries) {
      const ShardPart part = part_of(buckets_[b], entry, buckets_[b].axis->shard->rank());
      const int64_t count = part.end - part.begin;
      if (count > 0)
        by_param[entry.param] = {entry.param, part.begin, part.end,
                                 weights_[b].shard().narrow(0, part.offset, count),
                                 gradients_->shard(b).narrow(0, part.offset, count)};
    }
  }
  for (nn::Param& param : params_.params())
    if (const auto found = by_param.find(&param); found != by_param.end()) slices.push_back(found->second);
  return slices;
}

void DataParallel::note_parameters() {
  peak_parameters_ = std::max(peak_parameters_, held_bytes().parameters);
}

DataParallel::Bytes DataParallel::held_bytes() const {
  Bytes bytes;
  bytes.gradients = gradients_->held_bytes();
  for (const FlatWeights& weights : weights_) bytes.parameters += weights.held_bytes();
  for (const nn::Param& param : params_.params())
    if (weights_.empty() || param.spec.is_buffer)
      bytes.parameters += static_cast<int64_t>(param.value.nbytes());
  return bytes;
}

void DataParallel::start_gather(int64_t block) {
  const std::vector<size_t>& of_block = buckets_of_block_[static_cast<size_t>(block)];
  for (auto b = of_block.rbegin(); b != of_block.rend(); ++b) weights_[*b].start_gather();
}

void DataParallel::gather_all() {
  for (size_t b = weights_.size(); b > 0; --b) weights_[b - 1].start_gather();
  for (FlatWeights& weights : weights_) weights.wait();
}

void DataParallel::release_all() {
  for (FlatWeights& weights : weights_) weights.release();
}

void DataParallel::before(int64_t block, nn::Pass pass) {
  if (weights_.empty()) return;
  const bool gathers = options_.zero_stage == 3;
  if (gathers) start_gather(block);
  {
    const telemetry::Span span("wait for block", "parallel", block);
    for (const size_t b : buckets_of_block_[static_cast<size_t>(block)]) weights_[b].wait();
    // What is used behind the blocks, or between the last two of them (multi-token prediction).
    if (pass == nn::Pass::forward && block + 2 >= num_blocks())
      for (FlatWeights& weights : weights_)
        if (weights.is_gathered()) weights.wait();
  }
  if (!gathers) return;
  // The next one travels while this one computes.
  const int64_t next = pass == nn::Pass::forward ? block + 1 : block - 1;
  if (next >= 0 && next < num_blocks()) start_gather(next);
  note_parameters();
}

void DataParallel::after(int64_t block, nn::Pass pass) {
  if (options_.zero_stage < 3) return;
  if (pass == nn::Pass::backward) {
    gradients_->end_block(block);
  } else if (at::GradMode::is_enabled() && block == num_blocks() - 1) {
    return;  // the backward pass begins with it
  }
  for (const size_t b : buckets_of_block_[static_cast<size_t>(block)]) weights_[b].release();
}

}  // namespace moebius::parallel
