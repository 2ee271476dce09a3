// One entry per kernel variant of the integer product; they are compiled in files of their own (int8_plain.cu
// and its siblings).
#pragma once

#include <algorithm>

#include "kernels/cuda/int8_kernel.cuh"
#include "kernels/cuda/int8_multiply.cuh"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {

// A compiled kernel and what the host must know of it.
struct Int8Variant {
  const char* name;
  Int8Tile tile;
  bool swiglu;
  int digits;
  int max_groups;
  void (*launch)(const Int8KernelParams& params, cudaStream_t stream);
};

struct Int8Variants {
  const Int8Variant* begin;
  const Int8Variant* end;
};
Int8Variants int8_plain_variants();
Int8Variants int8_swiglu_variants();

template <class K>
void launch_int8(const Int8KernelParams& params, cudaStream_t stream) {
  static const cudaError_t kPrepared =
      cudaFuncSetAttribute(int8_kernel<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, K::kSharedBytes);
  MOEBIUS_CUDA_CHECK(kPrepared);
  cudaLaunchConfig_t config{};
  const int32_t clusters = std::min(num_multiprocessors() / K::kBlocks, params.most_tiles);
  config.gridDim = dim3(static_cast<unsigned>(clusters * K::kBlocks));
  config.blockDim = dim3(K::kThreads);
  config.dynamicSmemBytes = K::kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = K::kBlocks;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = K::kBlocks == 1 ? 1 : 2;
  MOEBIUS_CUDA_CHECK(cudaLaunchKernelEx(&config, int8_kernel<K>, params));
}

template <class K>
constexpr Int8Variant int8_variant(const char* name) {
  return {name,          {K::kRows, K::kColumns, K::kPingpong, K::kBlocks},
          K::kSwiglu,    K::kDigits,
          K::kMaxGroups, launch_int8<K>};
}

}  // namespace moebius::kernels::cuda
