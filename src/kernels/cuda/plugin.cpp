// The entry of libmoebius_cuda.so (kernels/api/plugin.h): with nccl_group.cpp the only file of the plug-in
// that knows libtorch. It hands out the kernel table, libtorch's streams and memory counters, and the choice
// of attention backend.
#include "kernels/api/plugin.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <exception>
#include <memory>

#include "kernels/cuda/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/nccl_group.h"

namespace moebius::kernels::cuda {
namespace {

// libtorch's CUDA half: allocator, generators. Cheap after the first call.
void initialise() {
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
}

c10::DeviceIndex index_of(int device) {
  return static_cast<c10::DeviceIndex>(device);
}

int device_count() {
  return c10::cuda::device_count();
}

bool device_info(int device, DeviceInfo* info) {
  if (device < 0 || device >= device_count()) return false;
  const c10::cuda::CUDAGuard guard(index_of(device));
  cudaDeviceProp properties{};
  MOEBIUS_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  *info = {};
  std::snprintf(info->name, sizeof(info->name), "%s", properties.name);
  info->compute_major = properties.major;
  info->compute_minor = properties.minor;
  info->num_multiprocessors = properties.multiProcessorCount;
  size_t free_bytes = 0, total_bytes = 0;
  MOEBIUS_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  info->free_memory_bytes = static_cast<int64_t>(free_bytes);
  info->total_memory_bytes = static_cast<int64_t>(total_bytes);
  MOEBIUS_CUDA_CHECK(cudaDriverGetVersion(&info->driver_version));
  MOEBIUS_CUDA_CHECK(cudaRuntimeGetVersion(&info->runtime_version));
  MOEBIUS_CUDA_CHECK(cudaDeviceGetPCIBusId(info->pci_bus_id, sizeof(info->pci_bus_id), device));
  return true;
}

DeviceMemory device_memory(int device) {
  initialise();
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(index_of(device));
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return {stats.allocated_bytes[kAll].current, stats.allocated_bytes[kAll].peak,
          stats.reserved_bytes[kAll].current};
}

void reset_peak_memory(int device) {
  initialise();
  c10::cuda::CUDACachingAllocator::resetPeakStats(index_of(device));
}

Stream current_stream(int device) {
  return c10::cuda::getCurrentCUDAStream(index_of(device)).stream();
}

void synchronize(int device) {
  const c10::cuda::CUDAGuard guard(index_of(device));
  c10::cuda::device_synchronize();
}

void prefer_cudnn_attention(bool on) {
  using at::SDPBackend;
  at::Context& context = at::globalContext();
  context.setSDPUseCuDNN(on);
  std::vector<int64_t> order;
  if (on) order.push_back(static_cast<int64_t>(SDPBackend::cudnn_attention));
  for (const SDPBackend backend :
       {SDPBackend::flash_attention, SDPBackend::efficient_attention, SDPBackend::math})
    order.push_back(static_cast<int64_t>(backend));
  if (!on) order.push_back(static_cast<int64_t>(SDPBackend::cudnn_attention));
  order.push_back(static_cast<int64_t>(SDPBackend::overrideable));
  context.setSDPPriorityOrder(order);
}

void use_own_stream(int device) {
  synchronize(device);
  c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index_of(device)));
}

at::cuda::CUDAGraph& graph_of(void* graph) {
  return *static_cast<at::cuda::CUDAGraph*>(graph);
}

void* graph_begin(int device, void* shares_memory_with) {
  // What the allocator holds for work outside of graphs would otherwise stay beside the graph's pool.
  synchronize(device);
  c10::cuda::CUDACachingAllocator::emptyCache();
  auto graph = std::make_unique<at::cuda::CUDAGraph>();
  // {0, 0}: one of its own.
  const auto pool =
      shares_memory_with == nullptr ? decltype(graph->pool()){0, 0} : graph_of(shares_memory_with).pool();
  // Only this thread is held to what may be recorded: others may go on to use the driver.
  graph->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  return graph.release();
}

void graph_end(void* graph) {
  graph_of(graph).capture_end();
}

void graph_abort(void* graph) {
  const std::unique_ptr<at::cuda::CUDAGraph> owned(&graph_of(graph));
  try {
    owned->capture_end();
  } catch (const std::exception&) {  // that is why it is given up
  }
  cudaGetLastError();  // the error of the recording must not meet the next call
}

void graph_replay(void* graph) {
  graph_of(graph).replay();
}

void graph_free(void* graph) {
  delete &graph_of(graph);
}

void set_device(int device) {
  initialise();
  c10::cuda::set_device(index_of(device));
}

}  // namespace
}  // namespace moebius::kernels::cuda

extern "C" __attribute__((visibility("default"))) const moebius::kernels::Plugin* moebius_cuda_plugin() {
  namespace cuda = moebius::kernels::cuda;
  static const moebius::kernels::Plugin plugin{
      .abi_version = moebius::kernels::kPluginAbiVersion,
      .kernels = &cuda::cuda_kernels(),
      .device_count = cuda::device_count,
      .device_info = cuda::device_info,
      .device_memory = cuda::device_memory,
      .reset_peak_memory = cuda::reset_peak_memory,
      .current_stream = cuda::current_stream,
      .synchronize = cuda::synchronize,
      .prefer_cudnn_attention = cuda::prefer_cudnn_attention,
      .use_own_stream = cuda::use_own_stream,
      .graph_begin = cuda::graph_begin,
      .graph_end = cuda::graph_end,
      .graph_abort = cuda::graph_abort,
      .graph_replay = cuda::graph_replay,
      .graph_free = cuda::graph_free,
      .nccl_group = cuda::nccl_group,
      .set_device = cuda::set_device,
  };
  return &plugin;
}
