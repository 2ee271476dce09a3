// Host-side helpers of the launchers: run-time values turned into template arguments.
#pragma once

#include <cuda_runtime.h>

#include "base/check.h"
#include "kernels/api/types.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/geometry.h"
#include "kernels/cuda/vector.cuh"

namespace moebius::kernels::cuda {

template <int VALUE>
struct Constant {
  static constexpr int kValue = VALUE;
};

inline cudaStream_t cuda_stream(Stream stream) {
  return static_cast<cudaStream_t>(stream);
}

// Blocks of a one-dimensional grid.
inline int grid_size(int64_t blocks) {
  MOEBIUS_CHECK(blocks >= 1 && blocks <= INT32_MAX, "grid of ", blocks, " blocks");
  return static_cast<int>(blocks);
}

template <class Body>
void with_dtype(DType dtype, const Body& body) {
  dtype == DType::f32 ? body(float{}) : body(bf16{});
}

// body(Constant<N>) with N elements per access: 16 bytes' worth, or 1.
template <class T, class Body>
void with_vector(int elements, const Body& body) {
  elements == 1 ? body(Constant<1>{}) : body(Constant<16 / static_cast<int>(sizeof(T))>{});
}

// body(Constant<C>) for RowShape::chunks_per_thread.
template <class Body>
void with_chunks(int chunks, const Body& body) {
  switch (chunks) {
    case 1:
      return body(Constant<1>{});
    case 2:
      return body(Constant<2>{});
    case 4:
      return body(Constant<4>{});
    default:
      return body(Constant<0>{});
  }
}

}  // namespace moebius::kernels::cuda
