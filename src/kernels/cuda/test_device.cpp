#include "kernels/cuda/test_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <utility>

#include "kernels/cuda/check.h"

namespace moebius::kernels::cuda {
namespace {

uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

float from_bf16(uint16_t x) {
  return std::bit_cast<float>(uint32_t{x} << 16);
}

double tolerance(DType dtype) {
  return dtype == DType::f32 ? 2e-6 : 4e-3;
}

}  // namespace

bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

DeviceMemory::DeviceMemory(size_t bytes) {
  MOEBIUS_CUDA_CHECK(cudaMalloc(&data_, std::max<size_t>(bytes, 1)));
  MOEBIUS_CUDA_CHECK(cudaMemset(data_, 0xFF, std::max<size_t>(bytes, 1)));
}
DeviceMemory::~DeviceMemory() {
  cudaFree(data_);
}
DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}
void DeviceMemory::upload(const void* from, size_t bytes) {
  MOEBIUS_CUDA_CHECK(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice));
}
void DeviceMemory::download(void* to, size_t bytes, size_t from) const {
  MOEBIUS_CUDA_CHECK(cudaDeviceSynchronize());
  MOEBIUS_CUDA_CHECK(cudaMemcpy(to, static_cast<const char*>(data_) + from, bytes, cudaMemcpyDeviceToHost));
}

Values::Values(DType dtype, int64_t count, int64_t offset)
    : dtype_(dtype),
      count_(count),
      offset_(offset),
      memory_(static_cast<size_t>((count + offset) * size_of(dtype))) {}

Values::Values(DType dtype, const std::vector<double>& values, int64_t offset)
    : Values(dtype, static_cast<int64_t>(values.size()), offset) {
  const size_t count = values.size(), first = static_cast<size_t>(offset);
  if (dtype == DType::f32) {
    std::vector<float> raw(first + count);
    for (size_t i = 0; i < count; ++i) {
      raw[first + i] = static_cast<float>(values[i]);
      start_.push_back(raw[first + i]);
    }
    memory_.upload(raw.data(), raw.size() * sizeof(float));
  } else {
    std::vector<uint16_t> raw(first + count);
    for (size_t i = 0; i < count; ++i) {
      raw[first + i] = to_bf16(static_cast<float>(values[i]));
      start_.push_back(from_bf16(raw[first + i]));
    }
    memory_.upload(raw.data(), raw.size() * sizeof(uint16_t));
  }
}

Values Values::normal(DType dtype, int64_t count, uint64_t seed, double scale, int64_t offset) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> distribution(0.0, scale);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = distribution(random);
  return Values(dtype, values, offset);
}

void* Values::data() const {
  return static_cast<char*>(memory_.data()) + offset_ * size_of(dtype_);
}

std::vector<double> Values::host() const {
  return host(0, count_);
}

std::vector<double> Values::host(int64_t first, int64_t count) const {
  const size_t size = static_cast<size_t>(count), from = static_cast<size_t>(offset_ + first);
  std::vector<double> out(size);
  if (dtype_ == DType::f32) {
    std::vector<float> raw(size);
    memory_.download(raw.data(), size * sizeof(float), from * sizeof(float));
    for (size_t i = 0; i < size; ++i) out[i] = raw[i];
  } else {
    std::vector<uint16_t> raw(size);
    memory_.download(raw.data(), size * sizeof(uint16_t), from * sizeof(uint16_t));
    for (size_t i = 0; i < size; ++i) out[i] = from_bf16(raw[i]);
  }
  return out;
}

void expect_close(const std::string& what, const std::vector<double>& out,
                  const std::vector<double>& reference, DType dtype) {
  ASSERT_EQ(out.size(), reference.size()) << what;
  double error = 0.0, size = 0.0, worst = -1.0;
  size_t where = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double difference = std::abs(out[i] - reference[i]);
    if (!(difference <= worst)) {
      worst = difference;
      where = i;
      if (std::isnan(difference)) break;
    }
    error += difference * difference;
    size += reference[i] * reference[i];
  }
  if (out.empty()) return;
  const double relative = std::isnan(worst) ? worst : std::sqrt(error / std::max(size, 1e-30));
  EXPECT_TRUE(relative <= tolerance(dtype))
      << what << ": relative error " << relative << ", worst at " << where << ": " << out[where]
      << " instead of " << reference[where];
}

void for_dtypes(const std::function<void(DType dtype, int64_t offset)>& body) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t offset : {0, 1}) {
      SCOPED_TRACE(std::string(dtype == DType::f32 ? "fp32" : "bf16") + (offset == 0 ? "" : ", unaligned"));
      body(dtype, offset);
    }
  }
}

}  // namespace moebius::kernels::cuda
