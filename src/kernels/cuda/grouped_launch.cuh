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
  constexpr int kBlocks = K::kPairs ? 2 : 1;
  cudaLaunchAttribute pairs{};
  pairs.id = cudaLaunchAttributeClusterDimension;
  pairs.val.clusterDim = {kBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = num_multiprocessors() / kBlocks * kBlocks;
  config.blockDim = K::kThreads;
  config.dynamicSmemBytes = K::kSharedBytes;
  config.stream = stream;
  config.attrs = &pairs;
  config.numAttrs = K::kPairs ? 1 : 0;
  MOEBIUS_CUDA_CHECK(cudaLaunchKernelEx(&config, grouped_kernel<K>, params));
  MOEBIUS_CUDA_CHECK_LAUNCH("grouped_kernel");
}

template <class K>
constexpr GroupedVariant variant_of() {
  constexpr const char* kNames[] = {"128x192", "128x192 pairs", "128x256", "128x256 pairs"};
  return {kNames[2 * (K::kColumns == 256) + K::kPairs],
          K::kKind,
          K::kEpilogue,
          K::kGather,
          {K::kRows, K::kColumns},
          K::kPingpong,
          K::kPairs,
          K::kBoxA,
          K::kBoxB,
          K::kMaxGroups,
          launch_grouped<K>};
}

}  // namespace moebius::kernels::cuda
