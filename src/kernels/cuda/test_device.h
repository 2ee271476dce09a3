// Device memory for the tests of the CUDA kernels: poisoned outputs, random inputs, one error metric and one
// table of tolerances. Tests skip where there is no GPU.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/api/types.h"

namespace moebius::kernels::cuda {

bool has_device();
#define MOEBIUS_NEEDS_DEVICE() \
  if (!has_device()) GTEST_SKIP() << "no CUDA device"

// Device memory of `count` elements of 4 or 2 bytes, first filled with 0xFF: NaN as a float, -1 as an
// integer.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  void* data() const { return data_; }
  void upload(const void* from, size_t bytes);
  void download(void* to, size_t bytes, size_t from = 0) const;  // waits for the device

 private:
  void* data_ = nullptr;
};

// Values of a dtype on the device. `offset` moves the start by so many elements, to try unaligned pointers.
class Values {
 public:
  Values() = default;
  Values(DType dtype, int64_t count, int64_t offset = 0);  // poisoned
  Values(DType dtype, const std::vector<double>& values, int64_t offset = 0);
  // scale * standard normal.
  static Values normal(DType dtype, int64_t count, uint64_t seed, double scale = 1.0, int64_t offset = 0);

  void* data() const;
  float* floats() const { return static_cast<float*>(data()); }
  std::vector<double> host() const;
  std::vector<double> host(int64_t first, int64_t count) const;  // a part
  const std::vector<double>& start() const { return start_; }    // what was uploaded, as rounded to the dtype
  int64_t count() const { return count_; }

 private:
  DType dtype_ = DType::f32;
  int64_t count_ = 0, offset_ = 0;
  DeviceMemory memory_;
  std::vector<double> start_;
};

template <class I>
class Integers {
 public:
  explicit Integers(int64_t count) : count_(count), memory_(static_cast<size_t>(count) * sizeof(I)) {}
  explicit Integers(const std::vector<I>& values) : Integers(static_cast<int64_t>(values.size())) {
    memory_.upload(values.data(), values.size() * sizeof(I));
  }
  I* data() const { return static_cast<I*>(memory_.data()); }
  std::vector<I> host() const {
    std::vector<I> out(static_cast<size_t>(count_));
    memory_.download(out.data(), out.size() * sizeof(I));
    return out;
  }

 private:
  int64_t count_;
  DeviceMemory memory_;
};

// |out - reference| / |reference| at most the tolerance of the dtype; not-a-number never passes.
void expect_close(const std::string& what, const std::vector<double>& out,
                  const std::vector<double>& reference, DType dtype);

// Every kernel case runs for both dtypes and at aligned and unaligned addresses.
void for_dtypes(const std::function<void(DType dtype, int64_t offset)>& body);

}  // namespace moebius::kernels::cuda
