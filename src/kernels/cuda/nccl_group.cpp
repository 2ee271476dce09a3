#include "kernels/cuda/nccl_group.h"

#include <chrono>
#include <cstdlib>
#include <utility>

#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace moebius::kernels::cuda {
namespace {

// c10d's own watch over its collectives, which ends the process with pages of text, is left out: the program
// has one that names ranks. What the user has set stays.
void choose_behaviour() {
  constexpr std::pair<const char*, const char*> kVariables[] = {
      {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"},
      {"TORCH_NCCL_ENABLE_MONITORING", "0"},
      {"TORCH_NCCL_DUMP_ON_TIMEOUT", "0"},
      {"TORCH_NCCL_PROPAGATE_ERROR", "0"},
      {"TORCH_FR_BUFFER_SIZE", "0"},
      // Kernels of several groups start in the order of the host, so that no two wait for each other.
      {"NCCL_LAUNCH_ORDER_IMPLICIT", "1"}};
  for (const auto& [name, value] : kVariables) ::setenv(name, value, /*overwrite=*/0);
}

}  // namespace

void* nccl_group(const NcclGroup& group) {
  choose_behaviour();
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(group.device));
  // High priority: a collective that competes with products for the device is what others wait for.
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = std::chrono::hours(24 * 365);
  auto made = c10::make_intrusive<c10d::ProcessGroupNCCL>(
      *static_cast<const c10::intrusive_ptr<c10d::Store>*>(group.store), group.rank, group.size, options);
  return static_cast<c10d::Backend*>(made.release());
}

}  // namespace moebius::kernels::cuda
