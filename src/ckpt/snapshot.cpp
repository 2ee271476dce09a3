#include "ckpt/snapshot.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

#include "base/check.h"
#include "ckpt/tensor_bytes.h"

namespace moebius::ckpt {
namespace {

constexpr size_t kSlabBytes = size_t{256} << 20;

}  // namespace

void Snapshot::Pool::reserve(size_t num_bytes) {
  rewind();
  size_t held = 0;
  size_t kept = 0;
  for (; kept < slabs_.size() && held < num_bytes; ++kept) held += static_cast<size_t>(slabs_[kept].numel());
  slabs_.resize(kept);
  while (held < num_bytes) {
    const size_t slab = std::min(kSlabBytes, num_bytes - held);
    slabs_.push_back(
        at::empty({static_cast<int64_t>(slab)}, at::TensorOptions().dtype(at::kByte).pinned_memory(pinned_)));
    held += slab;
  }
}

std::vector<at::Tensor> Snapshot::Pool::take(size_t num_bytes) {
  std::vector<at::Tensor> pieces;
  while (num_bytes > 0) {
    MOEBIUS_CHECK_LT(slab_, slabs_.size());
    const auto slab = static_cast<size_t>(slabs_[slab_].numel());
    const size_t length = std::min(num_bytes, slab - used_);
    if (length > 0) {
      pieces.push_back(slabs_[slab_].narrow(0, static_cast<int64_t>(used_), static_cast<int64_t>(length)));
    }
    num_bytes -= length;
    used_ += length;
    if (used_ == slab) {
      ++slab_;
      used_ = 0;
    }
  }
  return pieces;
}

size_t Snapshot::Pool::num_bytes() const {
  size_t sum = 0;
  for (const at::Tensor& slab : slabs_) sum += static_cast<size_t>(slab.numel());
  return sum;
}

void Snapshot::capture(std::span<const TensorGroup> groups) {
  groups_.clear();
  size_t on_cpu = 0, on_device = 0;
  for (const TensorGroup& group : groups) {
    for (const NamedTensor& named : group.tensors) {
      (named.tensor.is_cpu() ? on_cpu : on_device) += named.tensor.nbytes();
    }
  }
  pageable_.reserve(on_cpu);
  pinned_.reserve(on_device);

  std::vector<PendingGroup> captured;
  std::vector<c10::Device> devices;
  for (const TensorGroup& group : groups) {
    PendingGroup& entry = captured.emplace_back();
    entry.name = group.name;
    for (const NamedTensor& named : group.tensors) {
      const bool cpu = named.tensor.is_cpu();
      if (!cpu && std::find(devices.begin(), devices.end(), named.tensor.device()) == devices.end()) {
        devices.push_back(named.tensor.device());
      }
      const at::Tensor source = flat_bytes(named.tensor);
      std::vector<at::Tensor> pieces = (cpu ? pageable_ : pinned_).take(named.tensor.nbytes());
      int64_t begin = 0;
      for (at::Tensor& piece : pieces) {
        piece.copy_(source.narrow(0, begin, piece.numel()), /*non_blocking=*/true);
        begin += piece.numel();
      }
      std::vector<std::span<const std::byte>> spans;
      for (const at::Tensor& piece : pieces) {
        spans.emplace_back(static_cast<const std::byte*>(piece.const_data_ptr()),
                           static_cast<size_t>(piece.numel()));
      }
      entry.tensors.push_back({spec_of(named.name, named.tensor), [spans](const ByteSink& sink) {
                                 for (const auto& span : spans) sink(span);
                               }});
    }
  }
  for (const c10::Device& device : devices) {
    const c10::impl::VirtualGuardImpl guard(device.type());
    guard.synchronizeStream(guard.getStream(device));
  }
  groups_ = std::move(captured);
}

}  // namespace moebius::ckpt
