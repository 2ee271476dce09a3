// Rows to expert order and back (kernels/api/permute.h). The gather keeps four 16-byte loads of a thread in
// flight; the combination reads the K rows of a token and sums them in fp32 in the order of k.
#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kInFlight = 4;

// A block is (threads of a row, rows).
template <class T, int N>
__global__ void __launch_bounds__(256, 4) gather_rows_kernel(const T* __restrict__ src,          // (T, D)
                                                             const int32_t* __restrict__ order,  // (R)
                                                             T* __restrict__ rows,               // (R, D) out
                                                             int64_t num_rows, int width, FastDivisor top_k) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= num_rows) return;
  const int32_t slot = order[row];
  T* to = rows + row * width;
  const int step = blockDim.x * N;
  if (slot < 0) {
    for (int column = threadIdx.x * N; column < width; column += step)
      store_pack(to + column, zero_pack<T, N>());
    return;
  }
  const T* from = src + static_cast<int64_t>(divide(static_cast<uint32_t>(slot), top_k)) * width;
  for (int begin = threadIdx.x * N; begin < width; begin += kInFlight * step) {
    Pack<T, N> held[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (begin + i * step < width) held[i] = load_pack<T, N>(from + begin + i * step);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (begin + i * step < width) store_pack(to + begin + i * step, held[i]);
    }
  }
}

// A block is (threads of a token, tokens).
template <class T, int N>
__global__ void __launch_bounds__(256, 4)
    combine_rows_kernel(const T* __restrict__ rows,           // (R, D)
                        const int32_t* __restrict__ inverse,  // (T * K)
                        const float* __restrict__ weights,    // (T * K) or null
                        const T* add,                         // (T, D) or null
                        T* out,                               // (T, D) out; may be add
                        int64_t num_tokens, int width, int top_k) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (token >= num_tokens) return;
  const int32_t* slots = inverse + token * top_k;
  for (int column = threadIdx.x * N; column < width; column += blockDim.x * N) {
    float sum[N] = {};
    if (add != nullptr) unpack(load_pack<T, N>(add + token * width + column), sum);
    for (int first = 0; first < top_k; first += kInFlight) {
      Pack<T, N> held[kInFlight];
      float scale[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int k = first + i;
        const int32_t row = k < top_k ? slots[k] : -1;
        scale[i] = row >= 0 ? (weights == nullptr ? 1.0f : weights[token * top_k + k]) : 0.0f;
        held[i] =
            row >= 0 ? load_pack<T, N>(rows + static_cast<int64_t>(row) * width + column) : zero_pack<T, N>();
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        float x[N];
        unpack(held[i], x);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += scale[i] * x[j];
      }
    }
    store_pack(out + token * width + column, pack_of<T, N>(sum));
  }
}

}  // namespace

void gather_rows(const GatherRowsArgs& a, Stream stream) {
  if (a.num_rows == 0 || a.width == 0) return;
  with_dtype(a.dtype, [&]<class T>(T) {
    with_vector<T>(vector_elements(a.width, sizeof(T), {a.src, a.rows}), [&]<int N>(Constant<N>) {
      const RowShape shape = row_shape(a.width / N, kInFlight, 256);
      const dim3 block(shape.threads_per_row, shape.rows_per_block);
      gather_rows_kernel<T, N>
          <<<grid_size(ceil_div(a.num_rows, shape.rows_per_block)), block, 0, cuda_stream(stream)>>>(
              static_cast<const T*>(a.src), a.order, static_cast<T*>(a.rows), a.num_rows,
              static_cast<int>(a.width), fast_divisor(a.top_k));
      MOEBIUS_CUDA_CHECK_LAUNCH("gather_rows");
    });
  });
}

void combine_rows(const CombineRowsArgs& a, Stream stream) {
  if (a.num_tokens == 0 || a.width == 0) return;
  with_dtype(a.dtype, [&]<class T>(T) {
    with_vector<T>(vector_elements(a.width, sizeof(T), {a.rows, a.add, a.out}), [&]<int N>(Constant<N>) {
      const RowShape shape = row_shape(a.width / N, 2, 256);
      const dim3 block(shape.threads_per_row, shape.rows_per_block);
      combine_rows_kernel<T, N>
          <<<grid_size(ceil_div(a.num_tokens, shape.rows_per_block)), block, 0, cuda_stream(stream)>>>(
              static_cast<const T*>(a.rows), a.inverse, a.weights, static_cast<const T*>(a.add),
              static_cast<T*>(a.out), a.num_tokens, static_cast<int>(a.width), static_cast<int>(a.top_k));
      MOEBIUS_CUDA_CHECK_LAUNCH("combine_rows");
    });
  });
}

}  // namespace moebius::kernels::cuda
