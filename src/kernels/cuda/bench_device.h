// What the benchmarks of the CUDA kernels share: random device memory and times by events.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "kernels/api/types.h"
#include "kernels/cuda/check.h"

namespace moebius::kernels::cuda {

// Device memory with random numbers in [-1, 1) or given integers; only grows, freed at exit by the driver.
template <class T>
T* upload(const std::vector<T>& values) {
  void* data = nullptr;
  MOEBIUS_CUDA_CHECK(cudaMalloc(&data, values.size() * sizeof(T)));
  MOEBIUS_CUDA_CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(data);
}

inline void* random_values(DType dtype, int64_t count) {
  constexpr int64_t kPattern = 1 << 22;  // repeated: enough not to compress, quick to make
  static std::mt19937 random(1);
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  const int64_t part = std::min(count, kPattern);
  for (int64_t i = 0; i < part; ++i) {
    const float x = static_cast<float>(static_cast<double>(random()) / 2147483648.0 - 1.0);
    if (dtype == DType::f32) {
      floats.push_back(x);
    } else {
      uint32_t bits;
      __builtin_memcpy(&bits, &x, 4);
      halves.push_back(static_cast<uint16_t>(bits >> 16));
    }
  }
  char* data = nullptr;
  const int64_t bytes = count * size_of(dtype), step = part * size_of(dtype);
  MOEBIUS_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data), static_cast<size_t>(bytes)));
  const void* from = dtype == DType::f32 ? static_cast<const void*>(floats.data()) : halves.data();
  MOEBIUS_CUDA_CHECK(cudaMemcpy(data, from, static_cast<size_t>(step), cudaMemcpyHostToDevice));
  for (int64_t at = step; at < bytes; at += step)
    MOEBIUS_CUDA_CHECK(cudaMemcpy(data + at, data, static_cast<size_t>(std::min(step, bytes - at)),
                                  cudaMemcpyDeviceToDevice));
  return data;
}
inline float* random_floats(int64_t count) {
  return static_cast<float*>(random_values(DType::f32, count));
}

// Median microseconds of `repeats` runs after `warm_up` ones.
inline double median_us(const std::function<void(Stream)>& kernel, int warm_up = 3, int repeats = 20) {
  static cudaStream_t stream = nullptr;
  static cudaEvent_t begin = nullptr, end = nullptr;
  if (stream == nullptr) {
    MOEBIUS_CUDA_CHECK(cudaStreamCreate(&stream));
    MOEBIUS_CUDA_CHECK(cudaEventCreate(&begin));
    MOEBIUS_CUDA_CHECK(cudaEventCreate(&end));
  }
  std::vector<float> times;
  for (int i = 0; i < warm_up + repeats; ++i) {
    MOEBIUS_CUDA_CHECK(cudaEventRecord(begin, stream));
    kernel(stream);
    MOEBIUS_CUDA_CHECK(cudaEventRecord(end, stream));
    MOEBIUS_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0.0f;
    MOEBIUS_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= warm_up) times.push_back(ms * 1e3f);
  }
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

// Mean microseconds of a kernel that has run without a pause for `seconds` and runs on for as long: what a
// layer sees, since a card at its power limit clocks lower after some tenths of a second.
inline double sustained_us(const std::function<void(Stream)>& kernel, double seconds = 0.2) {
  const double once = median_us(kernel, 1, 3);
  const int count = static_cast<int>(seconds * 1e6 / once) + 1;
  cudaEvent_t begin = nullptr, end = nullptr;
  MOEBIUS_CUDA_CHECK(cudaEventCreate(&begin));
  MOEBIUS_CUDA_CHECK(cudaEventCreate(&end));
  for (int i = 0; i < count; ++i) kernel(nullptr);
  MOEBIUS_CUDA_CHECK(cudaEventRecord(begin, nullptr));
  for (int i = 0; i < count; ++i) kernel(nullptr);
  MOEBIUS_CUDA_CHECK(cudaEventRecord(end, nullptr));
  MOEBIUS_CUDA_CHECK(cudaEventSynchronize(end));
  float ms = 0.0f;
  MOEBIUS_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
  MOEBIUS_CUDA_CHECK(cudaEventDestroy(begin));
  MOEBIUS_CUDA_CHECK(cudaEventDestroy(end));
  return static_cast<double>(ms) * 1e3 / count;
}

}  // namespace moebius::kernels::cuda
