// SwiGLU on interleaved columns, forward and backward (kernels/api/swiglu.h). One pass each. A thread holds
// 16 bytes of output columns, which are 32 bytes of gate_up.
#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kInFlight = 2;  // chunks of a thread between loads and stores

template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + exp_for<T>(-x));
}
template <>
__device__ __forceinline__ float sigmoid<float>(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// One thread per N output columns; a block covers 256 neighbouring ones of the flat (rows, F / N) grid.
template <class T, int N>
__global__ void __launch_bounds__(256)
    swiglu_forward_kernel(const T* __restrict__ gate_up,           // (R, 2F)
                          T* __restrict__ out,                     // (R, F) out
                          const int32_t* __restrict__ valid_rows,  // (1) or null
                          int64_t first_row, uint32_t count, FastDivisor chunks) {
  const uint32_t index = blockIdx.x * 256u + threadIdx.x;
  if (index >= count) return;
  const int64_t row = first_row + divide(index, chunks);
  const int64_t at = (first_row * chunks.divisor + index) * N;
  if (valid_rows != nullptr && row >= *valid_rows) {
    store_pack(out + at, zero_pack<T, N>());
    return;
  }
  float x[2 * N], y[N];
  TwoChunks<T, N> pairs;
  pairs.load(gate_up + 2 * at);
  pairs.unpack_to(x);
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = x[2 * i] * sigmoid<T>(x[2 * i]) * x[2 * i + 1];
  store_pack(out + at, pack_of<T, N>(y));
}

// A block is (threads of a row, rows).
template <class T, int N>
__global__ void __launch_bounds__(256, 4)
    swiglu_backward_kernel(const T* gate_up,                        // (R, 2F)
                           const T* grad_out,                       // (R, F)
                           const float* __restrict__ row_scale,     // (R) or null
                           const int32_t* __restrict__ slots,       // (R) or null
                           T* grad_gate_up,                         // (R, 2F) out; may be gate_up
                           T* act_scaled,                           // (R, F) out, or null; may be grad_out
                           float* __restrict__ grad_row_scale,      // (R) out, or null
                           const int32_t* __restrict__ valid_rows,  // (1) or null
                           int64_t num_rows, int width) {
  __shared__ float shared[8 * 32];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool present = row < num_rows;
  const bool valid = present && (valid_rows == nullptr || row < *valid_rows);
  const int64_t slot = valid && slots != nullptr ? slots[row] : row;
  const float scale = valid && row_scale != nullptr ? row_scale[slot] : 1.0f;
  const int64_t begin = row * width;
  float dot[1] = {0.0f};
  if (valid) {
    // All loads of a round before its stores: where outputs replace inputs, the compiler may not reorder
    // them.
    for (int first = threadIdx.x * N; first < width; first += kInFlight * blockDim.x * N) {
      TwoChunks<T, N> pairs[kInFlight];
      Pack<T, N> grads[kInFlight];
#pragma unroll
      for (int c = 0; c < kInFlight; ++c) {
        const int column = first + c * blockDim.x * N;
        if (column < width) {
          pairs[c].load(gate_up + 2 * (begin + column));
          grads[c] = load_pack<T, N>(grad_out + begin + column);
        }
      }
#pragma unroll
      for (int c = 0; c < kInFlight; ++c) {
        const int column = first + c * blockDim.x * N;
        if (column >= width) continue;
        float x[2 * N], g[N], act[N];
        pairs[c].unpack_to(x);
        unpack(grads[c], g);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float gate = x[2 * i], up = x[2 * i + 1], s = sigmoid<T>(gate), silu = gate * s;
          act[i] = silu * up;
          dot[0] += g[i] * act[i];
          const float grad = scale * g[i];
          x[2 * i] = grad * up * (s + silu * (1.0f - s));
          x[2 * i + 1] = grad * silu;
          act[i] *= scale;
        }
        TwoChunks<T, N>::store(grad_gate_up + 2 * (begin + column), x);
        if (act_scaled != nullptr) store_pack(act_scaled + begin + column, pack_of<T, N>(act));
      }
    }
  } else if (present) {
    for (int column = threadIdx.x * N; column < width; column += blockDim.x * N) {
      const int64_t at = begin + column;
      store_pack(grad_gate_up + 2 * at, zero_pack<T, N>());
      store_pack(grad_gate_up + 2 * at + N, zero_pack<T, N>());
      if (act_scaled != nullptr) store_pack(act_scaled + at, zero_pack<T, N>());
    }
  }
  if (grad_row_scale == nullptr) return;
  sum_row(dot, shared);
  if (threadIdx.x == 0 && (slots == nullptr ? present : valid)) grad_row_scale[slot] = dot[0];
}

}  // namespace

void swiglu_forward(const SwigluForwardArgs& a, Stream stream) {
  if (a.num_rows == 0 || a.width == 0) return;
  with_dtype(a.dtype, [&]<class T>(T) {
    with_vector<T>(vector_elements(a.width, sizeof(T), {a.gate_up, a.out}), [&]<int N>(Constant<N>) {
      const FastDivisor chunks = fast_divisor(a.width / N);
      const int64_t most_rows = std::max<int64_t>(1, ((int64_t{1} << 31) - 256) / chunks.divisor);
      for (int64_t row = 0; row < a.num_rows; row += most_rows) {
        const int64_t count = std::min(most_rows, a.num_rows - row) * chunks.divisor;
        swiglu_forward_kernel<T, N><<<grid_size(ceil_div(count, 256)), 256, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.gate_up), static_cast<T*>(a.out), a.valid_rows, row,
            static_cast<uint32_t>(count), chunks);
        MOEBIUS_CUDA_CHECK_LAUNCH("swiglu_forward");
      }
    });
  });
}

void swiglu_backward(const SwigluBackwardArgs& a, Stream stream) {
  if (a.num_rows == 0) return;
  with_dtype(a.dtype, [&]<class T>(T) {
    const int elements =
        vector_elements(a.width, sizeof(T), {a.gate_up, a.grad_out, a.grad_gate_up, a.act_scaled});
    with_vector<T>(elements, [&]<int N>(Constant<N>) {
      const RowShape shape = row_shape(std::max<int64_t>(1, a.width / N), 4, 256);
      const dim3 block(shape.threads_per_row, shape.rows_per_block);
      const int blocks = grid_size(ceil_div(a.num_rows, shape.rows_per_block));
      swiglu_backward_kernel<T, N><<<blocks, block, 0, cuda_stream(stream)>>>(
          static_cast<const T*>(a.gate_up), static_cast<const T*>(a.grad_out), a.row_scale, a.slots,
          static_cast<T*>(a.grad_gate_up), static_cast<T*>(a.act_scaled), a.grad_row_scale, a.valid_rows,
          a.num_rows, static_cast<int>(a.width));
      MOEBIUS_CUDA_CHECK_LAUNCH("swiglu_backward");
    });
  });
}

}  // namespace moebius::kernels::cuda
