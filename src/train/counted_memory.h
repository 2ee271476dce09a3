// Counts the memory of CPU tensors, for tests and `moebius bench`.
#pragma once

#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace moebius::train {

// While an object lives, libtorch's CPU allocations go through it. One at a time; tensors may outlive it.
class CountedMemory {
 public:
  CountedMemory();
  ~CountedMemory();
  CountedMemory(const CountedMemory&) = delete;
  CountedMemory& operator=(const CountedMemory&) = delete;

  // Bytes of tensors that were allocated under an object of this class: now, and at most since reset_peak().
  int64_t current_bytes() const;
  int64_t peak_bytes() const;
  void reset_peak();

 private:
  c10::Allocator* before_;
};

}  // namespace moebius::train
