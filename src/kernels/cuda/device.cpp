#include "kernels/cuda/device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "kernels/cuda/check.h"

namespace moebius::kernels::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr size_t kLeastScratchBytes = size_t{4} << 20;

int current_device() {
  int device = 0;
  MOEBIUS_CUDA_CHECK(cudaGetDevice(&device));
  MOEBIUS_CHECK(device >= 0 && device < kMaxDevices, "device ", device);
  return device;
}

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
};

// Lets this thread allocate while a stream is being captured: the allocation itself is no stream operation.
class RelaxedCapture {
 public:
  RelaxedCapture() { MOEBIUS_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Of the current device; asked once for each. Zero is never an answer.
int cached(cudaDeviceAttr attribute, std::array<std::atomic<int>, kMaxDevices>& known) {
  const int device = current_device();
  std::atomic<int>& entry = known[static_cast<size_t>(device)];
  int value = entry.load(std::memory_order_relaxed);
  if (value == 0) {
    MOEBIUS_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    entry.store(value, std::memory_order_relaxed);
  }
  return value;
}

}  // namespace

int num_multiprocessors() {
  static std::array<std::atomic<int>, kMaxDevices> known{};
  return cached(cudaDevAttrMultiProcessorCount, known);
}

int compute_major() {
  static std::array<std::atomic<int>, kMaxDevices> known{};
  return cached(cudaDevAttrComputeCapabilityMajor, known);
}

void* scratch(size_t bytes, cudaStream_t stream) {
  static std::mutex mutex;
  static std::map<std::pair<int, cudaStream_t>, Buffer> buffers;
  const int device = current_device();
  const std::scoped_lock lock(mutex);
  Buffer& buffer = buffers[{device, stream}];
  if (buffer.bytes < bytes) {
    const size_t wanted = std::max({bytes, 2 * buffer.bytes, kLeastScratchBytes});
    const RelaxedCapture relaxed;
    void* data = nullptr;
    MOEBIUS_CUDA_CHECK(cudaMalloc(&data, wanted));
    buffer = {data, wanted};
  }
  return buffer.data;
}

}  // namespace moebius::kernels::cuda
