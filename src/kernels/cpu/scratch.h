// Per-thread scratch memory that grows and is kept, aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace moebius::kernels::cpu {

class Scratch {
 public:
  // At least `count` floats; contents are lost when it grows.
  float* floats(int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      memory_.reset(
          static_cast<float*>(::operator new(static_cast<size_t>(count) * sizeof(float), kAlignment)));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<float, Release> memory_;
  int64_t capacity_ = 0;
};

}  // namespace moebius::kernels::cpu
