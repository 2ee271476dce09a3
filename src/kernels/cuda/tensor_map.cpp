#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include <array>

#include "base/check.h"
#include "kernels/cuda/check.h"

namespace moebius::kernels::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  static const EncodeTiled kEntry = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    MOEBIUS_CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    MOEBIUS_CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(entry);
  }();
  return kEntry;
}

}  // namespace

CUtensorMap tensor_map(const void* data, int bytes, int64_t width, int64_t rows, int64_t depth, int64_t pitch,
                       int64_t plane, int box_rows) {
  CUtensorMap map;
  const std::array<cuuint64_t, 3> sizes{static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(rows),
                                        static_cast<cuuint64_t>(depth)};
  const std::array<cuuint64_t, 2> strides{static_cast<cuuint64_t>(pitch * bytes),
                                          static_cast<cuuint64_t>(plane * bytes)};
  const std::array<cuuint32_t, 3> box{static_cast<cuuint32_t>(128 / bytes), static_cast<cuuint32_t>(box_rows),
                                      1},
      steps{1, 1, 1};
  const auto encode = [&] {
    return encode_tiled()(&map, bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                          3, const_cast<void*>(data), sizes.data(), strides.data(), box.data(), steps.data(),
                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = encode();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {
    // A thread whose first call of CUDA this is, such as that of the backward pass: the driver, unlike the
    // runtime, gives it no context by itself.
    int device = 0;
    MOEBIUS_CUDA_CHECK(cudaGetDevice(&device));
    MOEBIUS_CUDA_CHECK(cudaSetDevice(device));
    result = encode();
  }
  MOEBIUS_CHECK(result == CUDA_SUCCESS, "tensor map of ", depth, " x ", rows, " x ", width, " elements of ",
                bytes, " bytes: error ", static_cast<int>(result));
  return map;
}

}  // namespace moebius::kernels::cuda
