// Launching one variant of the grouped product; included where variants are compiled.
#pragma once

#include "kernels/cuda/grouped_gemm.cuh"
#include "kernels/cuda/grouped_multiply.cuh"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {

template <class K>
void launch_grouped(const GroupedKernelParams& params, cudaStream_t stream) {
  static const cudaError_t kPrepared =
      cudaFuncSetAttribute(grouped_kernel<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, K::kSharedBytes);
  MOEBIUS_CUDA_CHECK(kPrepared);
  grouped_kernel<K><<<num_multiprocessors(), K::kThreads, K::kSharedBytes, stream>>>(params);
  MOEBIUS_CUDA_CHECK_LAUNCH("grouped_kernel");
}

template <class K>
constexpr GroupedVariant variant_of() {
  return {K::kPingpong ? "128x192 pingpong" : "128x256 cooperative",
          K::kKind,
          K::kEpilogue,
          K::kGather,
          {K::kRows, K::kColumns},
          K::kPingpong,
          K::kMaxGroups,
          launch_grouped<K>};
}

}  // namespace moebius::kernels::cuda
