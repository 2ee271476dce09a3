// A copy of tensors in host memory, taken at one moment and kept for a background write.
//
// Memory: as many bytes as the tensors, for as long as the object lives; the memory is used again by the next
// capture. Copies of device tensors go to pinned memory (fast, asynchronous among themselves), copies of CPU
// tensors to ordinary memory. Both are held in slabs of 256 MiB (the last one of each kind smaller), because
// the allocator of pinned memory rounds every allocation up to a power of two.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <span>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/writer.h"

namespace moebius::ckpt {

class Snapshot {
 public:
  // Copies all values; returns when they are there. The tensors may change afterwards. Throws what libtorch
  // throws when the memory cannot be had; the snapshot is then empty.
  void capture(std::span<const TensorGroup> groups);

  // The captured tensors, to be written. Their pieces point into this object: valid until the next capture.
  // No tensor operator is called to emit them.
  const std::vector<PendingGroup>& groups() const { return groups_; }

  size_t host_bytes() const { return pageable_.num_bytes() + pinned_.num_bytes(); }

 private:
  // Slabs of one kind of memory, filled from the start by every capture.
  class Pool {
   public:
    explicit Pool(bool pinned) : pinned_(pinned) {}
    void reserve(
        size_t num_bytes);  // afterwards the slabs hold exactly enough; fewer bytes free what is too much
    void rewind() { slab_ = used_ = 0; }
    std::vector<at::Tensor> take(size_t num_bytes);  // flat kByte pieces
    size_t num_bytes() const;

   private:
    bool pinned_;
    std::vector<at::Tensor> slabs_;
    size_t slab_ = 0, used_ = 0;  // where the next piece begins
  };

  Pool pageable_{false}, pinned_{true};
  std::vector<PendingGroup> groups_;
};

}  // namespace moebius::ckpt
