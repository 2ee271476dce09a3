#include "parallel/gradient_buckets.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "base/check.h"
#include "telemetry/trace.h"

namespace moebius::parallel {
namespace {

constexpr size_t kUnderWayOnGpu = 2;  // reductions of buckets

}  // namespace

// Called by autograd when the gradient of a micro-batch has been added to that of the parameter.
class GradientBuckets::Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(GradientBuckets& owner, size_t bucket, size_t entry) : owner_(owner), bucket_(bucket), entry_(entry) {}

  void operator()(const at::Tensor& param) override { owner_.on_gradient(bucket_, entry_, param); }

 private:
  GradientBuckets& owner_;
  size_t bucket_, entry_;
};

GradientBuckets::GradientBuckets(const std::vector<FlatBucket>& buckets, Keep keep)
    : buckets_(buckets), keep_(keep), states_(buckets.size()) {
  for (size_t b = 0; b < buckets.size(); ++b) {
    const FlatBucket& bucket = buckets[b];
    State& state = states_[b];
    state.has_gradient.assign(bucket.entries.size(), false);
    state.has_arrived.assign(bucket.entries.size(), false);
    if (keep == Keep::shard) {
      state.shard = at::zeros({bucket.shard_size()}, bucket.options());
      hold(static_cast<int64_t>(state.shard.nbytes()));
    } else {
      state.whole = at::zeros({bucket.size}, bucket.options());
      hold(static_cast<int64_t>(state.whole.nbytes()));
      state.shard = state.whole.narrow(0, bucket.shard_begin(), bucket.shard_size());
    }
    for (size_t e = 0; e < bucket.entries.size(); ++e)
      torch::autograd::impl::set_post_acc_grad_hooks(bucket.entries[e].param->value,
                                                     std::make_unique<Hook>(*this, b, e));
  }
}

GradientBuckets::~GradientBuckets() {
  for (const FlatBucket& bucket : buckets_)
    for (const FlatEntry& entry : bucket.entries)
      torch::autograd::impl::set_post_acc_grad_hooks(entry.param->value, nullptr);
}

void GradientBuckets::hold(int64_t bytes) {
  held_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, held_bytes_);
}

at::Tensor GradientBuckets::place_of(State& state, const FlatBucket& bucket, const FlatEntry& entry) {
  if (!state.whole.defined()) {
    state.whole = at::empty({bucket.size}, bucket.options());
    hold(static_cast<int64_t>(state.whole.nbytes()));
  }
  return state.whole.narrow(0, entry.offset, entry.size).view(entry.param->value.sizes());
}

void GradientBuckets::begin(bool is_last, const std::function<bool(const nn::Param&)>& arrives) {
  MOEBIUS_CHECK(!is_active_, "the micro-batch before has not ended");
  const at::NoGradGuard no_grad;
  while (next_settled_ < next_) settle(next_settled_);
  for (size_t b = 0; b < buckets_.size(); ++b) {
    State& state = states_[b];
    state.has_arrived.assign(state.has_arrived.size(), false);
    state.num_arrived = 0;
    state.is_started = false;
    for (size_t e = 0; arrives && e < state.has_arrived.size(); ++e) {
      if (arrives(*buckets_[b].entries[e].param)) continue;
      state.has_arrived[e] = true;
      ++state.num_arrived;
    }
  }
  next_ = next_settled_ = 0;
  is_last_ = is_last;
  is_active_ = true;
}

void GradientBuckets::on_gradient(size_t b, size_t e, const at::Tensor& param) {
  if (!is_active_) return;
  const at::NoGradGuard no_grad;
  const FlatBucket& bucket = buckets_[b];
  State& state = states_[b];
  MOEBIUS_CHECK(!state.is_started, "a second gradient of ", bucket.entries[e].param->spec.name,
                " after its bucket was sent");
  at::Tensor& grad = param.mutable_grad();
  // Autograd calls hooks without a gradient, too: of a weight whose gradient is left for later.
  if (!grad.defined()) return;
  MOEBIUS_CHECK(grad.scalar_type() == bucket.dtype, "gradient of ", bucket.entries[e].param->spec.name,
                " is ", grad.scalar_type());
  const at::Tensor place = place_of(state, bucket, bucket.entries[e]);
  // Autograd has added to what lies there already, or has made a tensor of its own.
  if (grad.const_data_ptr() != place.const_data_ptr()) {
    if (state.has_gradient[e]) {
      place.add_(grad);
    } else {
      place.copy_(grad);
    }
    if (keep_ == Keep::shard) {
      grad.reset();
    } else {
      grad = place;
    }
  }
  state.has_gradient[e] = true;
  if (!state.has_arrived[e]) ++state.num_arrived;
  state.has_arrived[e] = true;
  if (!reduces() || starts_by_block_) return;
  while (next_ < buckets_.size() &&
         states_[next_].num_arrived == static_cast<int64_t>(buckets_[next_].entries.size()))
    start_next();
}

void GradientBuckets::start_next() {
  const size_t b = next_;
  const FlatBucket& bucket = buckets_[b];
  State& state = states_[b];
  const telemetry::Span span("reduce", "parallel", static_cast<int64_t>(b));
  settle_done();
  int64_t filled = 0;
  for (size_t e = 0; e < bucket.entries.size(); ++e) {
    const FlatEntry& entry = bucket.entries[e];
    const at::Tensor place = place_of(state, bucket, entry);
    if (!state.has_gradient[e]) place.zero_();
    if (entry.offset > filled) state.whole.narrow(0, filled, entry.offset - filled).zero_();
    filled = entry.offset + entry.size;
  }
  if (bucket.size > filled) state.whole.narrow(0, filled, bucket.size - filled).zero_();
  state.is_started = true;
  if (keep_ == Keep::whole) {
    state.pending = bucket.axis->shard->all_reduce(state.whole);
    ++next_;
    return;
  }
  at::Tensor out = state.shard;
  if (state.has_sum) {
    state.incoming = at::empty({bucket.shard_size()}, bucket.options());
    hold(static_cast<int64_t>(state.incoming.nbytes()));
    out = state.incoming;
  }
  state.pending = bucket.axis->shard->reduce_scatter(out, state.whole);
  ++next_;
}

void GradientBuckets::settle(size_t b) {
  const FlatBucket& bucket = buckets_[b];
  State& state = states_[b];
  MOEBIUS_CHECK_EQ(b, next_settled_);
  ++next_settled_;
  state.pending.wait();
  Communicator* const replica = bucket.axis->replica;
  if (keep_ == Keep::whole) {
    if (replica != nullptr && replica->size() > 1) state.pending = replica->all_reduce(state.whole);
    return;
  }
  if (state.has_sum) {
    state.shard.add_(state.incoming);
    hold(-static_cast<int64_t>(state.incoming.nbytes()));
    state.incoming.reset();
  }
  state.has_sum = true;
  if (keep_ == Keep::shard) {
    hold(-static_cast<int64_t>(state.whole.nbytes()));
    state.whole.reset();
    state.has_gradient.assign(bucket.entries.size(), false);
  }
  if (is_last_ && replica != nullptr && replica->size() > 1) state.pending = replica->all_reduce(state.shard);
}

void GradientBuckets::settle_done() {
  const auto is_due = [&] {
    if (next_settled_ == next_) return false;
    // When a GPU ends something differs from rank to rank, and all must begin what follows in the same order.
    // To wait for one while others are under way holds nothing up: they follow it on the same stream.
    if (buckets_[next_settled_].device.is_cuda()) return next_ - next_settled_ > kUnderWayOnGpu;
    return states_[next_settled_].pending.is_done();
  };
  while (is_due()) settle(next_settled_);
}

void GradientBuckets::end_block(int64_t block) {
  if (!is_active_ || !reduces() || !starts_by_block_) return;
  const at::NoGradGuard no_grad;
  size_t end = buckets_.size();
  while (end > next_ && buckets_[end - 1].block != block) --end;
  while (next_ < end) start_next();
}

void GradientBuckets::end() {
  MOEBIUS_CHECK(is_active_, "no micro-batch has begun");
  const at::NoGradGuard no_grad;
  is_active_ = false;
  if (!reduces()) return;
  while (next_ < buckets_.size()) start_next();
}

void GradientBuckets::finish() {
  MOEBIUS_CHECK(is_last_ && !is_active_ && next_ == buckets_.size(), "the last micro-batch has not ended");
  const at::NoGradGuard no_grad;
  const telemetry::Span span("wait for gradients", "parallel");
  while (next_settled_ < next_) settle(next_settled_);
  for (size_t b = 0; b < buckets_.size(); ++b) {
    State& state = states_[b];
    state.pending.wait();  // for the replicas
    state.has_sum = false;
    state.has_gradient.assign(buckets_[b].entries.size(), false);
    for (const FlatEntry& entry : buckets_[b].entries) {
      at::Tensor& grad = entry.param->value.mutable_grad();
      if (keep_ == Keep::whole) {
        grad = place_of(state, buckets_[b], entry);
      } else {
        grad.reset();  // whole_till_end: its place holds sums of this rank only
      }
    }
  }
  next_ = next_settled_ = 0;
  is_last_ = false;
}

void GradientBuckets::release() {
  const at::NoGradGuard no_grad;
  is_active_ = false;
  while (next_settled_ < next_) settle(next_settled_);
  next_ = next_settled_ = 0;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    State& state = states_[b];
    state.pending.wait();
    state.has_sum = false;
    state.is_started = false;
    state.has_gradient.assign(buckets_[b].entries.size(), false);
    for (const FlatEntry& entry : buckets_[b].entries) entry.param->value.mutable_grad().reset();
  }
}

}  // namespace moebius::parallel
