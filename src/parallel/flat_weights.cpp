#include "parallel/flat_weights.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "base/check.h"

namespace moebius::parallel {
namespace {

std::vector<int64_t> dense_strides(at::IntArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i > 1; --i)
    strides[i - 2] = strides[i - 1] * std::max<int64_t>(sizes[i - 1], 1);
  return strides;
}

}  // namespace

FlatWeights::FlatWeights(const FlatBucket& bucket, bool is_released)
    : bucket_(&bucket), is_released_(is_released), is_gathered_(true) {
  const at::NoGradGuard no_grad;
  whole_ = at::zeros({bucket.size}, bucket.options());
  for (const FlatEntry& entry : bucket.entries) {
    at::Tensor& value = entry.param->value;
    // A tensor of its own on the same storage, not a view: the gathered values are written through whole_,
    // and autograd must not take that for a change of what it has saved.
    at::Tensor place = at::empty({0}, bucket.options());
    place.set_(whole_.storage(), entry.offset, value.sizes(), dense_strides(value.sizes()));
    place.copy_(value.detach());
    const bool requires_grad = value.requires_grad();
    value = place;
    value.set_requires_grad(requires_grad);
  }
  shard_ = whole_.narrow(0, bucket.shard_begin(), bucket.shard_size());
  if (!is_released) return;
  shard_ = shard_.clone();
  release();
}

void FlatWeights::start_gather() {
  if (is_gathered_) return;
  const at::NoGradGuard no_grad;
  is_gathered_ = true;
  if (is_released_) {
    at::Tensor memory = at::empty({bucket_->size}, bucket_->options());
    c10::StorageImpl* const to = whole_.storage().unsafeGetStorageImpl();
    c10::StorageImpl* const from = memory.storage().unsafeGetStorageImpl();
    to->set_nbytes(from->nbytes());
    to->set_data_ptr_noswap(from->set_data_ptr(c10::DataPtr(nullptr, bucket_->device)));
    from->set_nbytes(0);
  }
  pending_ = bucket_->axis->shard->all_gather(whole_, shard_);
}

void FlatWeights::wait() {
  MOEBIUS_CHECK(is_gathered_, "nothing is being gathered");
  pending_.wait();
}

void FlatWeights::changed() {
  if (is_gathered_) pending_.wait();
  if (is_released_) {
    release();
  } else {
    is_gathered_ = false;
  }
}

void FlatWeights::release() {
  if (!is_released_ || !is_gathered_) return;
  pending_.wait();
  is_gathered_ = false;
  c10::StorageImpl* const storage = whole_.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(c10::DataPtr(nullptr, bucket_->device));
  storage->set_nbytes(0);
}

int64_t FlatWeights::held_bytes() const {
  const auto own = static_cast<int64_t>(is_released_ ? shard_.nbytes() : 0);
  return own + static_cast<int64_t>(whole_.storage().nbytes());
}

}  // namespace moebius::parallel
