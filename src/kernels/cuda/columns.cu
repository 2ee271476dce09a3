#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kColumns = 32, kLanes = 16;

// A block is (columns, lanes): each lane sums every kLanes-th row, then lane 0 sums the lanes.
__global__ void sum_columns_kernel(const float* __restrict__ partial,  // (rows, stride)
                                   int64_t rows, int64_t width, int64_t stride,
                                   float* __restrict__ out) {  // (width)
  __shared__ float shared[kLanes][kColumns + 1];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  float sum = 0.0f;
  if (column < width) {
#pragma unroll 8
    for (int64_t row = threadIdx.y; row < rows; row += kLanes) sum += partial[row * stride + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  sum = 0.0f;
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) sum += shared[lane][threadIdx.x];
  out[column] = sum;
}

}  // namespace

void sum_columns(const float* partial, int64_t rows, int64_t width, int64_t stride, float* out,
                 cudaStream_t stream) {
  sum_columns_kernel<<<grid_size(ceil_div(width, kColumns)), dim3(kColumns, kLanes), 0, stream>>>(
      partial, rows, width, stride, out);
  MOEBIUS_CUDA_CHECK_LAUNCH("sum_columns");
}

}  // namespace moebius::kernels::cuda
