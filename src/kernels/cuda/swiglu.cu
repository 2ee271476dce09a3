// SwiGLU on interleaved columns, forward and backward (kernels/api/swiglu.h). One pass each.
#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kInFlight = 4;  // chunks of a thread between loads and stores

template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  return sigmoid_of(x);
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

// N neighbouring pairs of gate and up: an access of 2N elements where those are as aligned as one.
template <class T, int N>
struct Pairs {
  Pack<T, 2 * N> all;
  __device__ __forceinline__ void load(const T* p) { all = load_pack<T, 2 * N>(p); }
  __device__ __forceinline__ void unpack_to(float (&x)[2 * N]) const { unpack(all, x); }
  __device__ __forceinline__ static void store(T* p, const float (&x)[2 * N]) {
    store_pack(p, pack_of<T, 2 * N>(x));
  }
};
template <class T>
struct Pairs<T, 1> : TwoChunks<T, 1> {};

// A block is (threads of a row, rows). A thread has kInFlight accesses under way: of one row, or, where a
// thread has fewer of a row, of ROWS rows. N: outputs of an access, so that a warp's accesses of 2N inputs
// are one line after the other. Nothing that is loaded waits for the number of valid rows.
template <class T, int N, int ROWS>
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
  constexpr int kOfRow = kInFlight / ROWS;
  __shared__ float shared[8 * 32 * ROWS];
  const int step = static_cast<int>(blockDim.x) * N;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * (blockDim.y * ROWS) + threadIdx.y;
  const int64_t num_valid = valid_rows == nullptr ? num_rows : *valid_rows;
  const auto row_at = [&](int r) { return first_row + r * static_cast<int>(blockDim.y); };
  int64_t slot[ROWS];
  float scale[ROWS], dot[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    slot[r] = row_at(r);
    if (slots != nullptr && row_at(r) < num_rows) slot[r] = slots[row_at(r)];
    dot[r] = 0.0f;
  }
  for (int first = threadIdx.x * N; first < width; first += kOfRow * step) {
    // All loads of a round before its stores: where outputs replace inputs, the compiler may not reorder
    // them.
    Pairs<T, N> pairs[kInFlight];
    Pack<T, N> grads[kInFlight];
    const auto place = [&](int c) {
      const int column = first + c % kOfRow * step;
      const int64_t row = row_at(c / kOfRow);
      return column < width && row < num_rows ? row * width + column : -1;
    };
#pragma unroll
    for (int c = 0; c < kInFlight; ++c) {
      const int64_t at = place(c);
      if (at < 0) continue;
      pairs[c].load(gate_up + 2 * at);
      grads[c] = load_pack<T, N>(grad_out + at);
    }
    if (first == threadIdx.x * N) {  // here, so that no load of the first round waits for the slots
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        scale[r] = row_scale != nullptr && row_at(r) < num_rows && slot[r] >= 0 ? row_scale[slot[r]] : 1.0f;
    }
#pragma unroll
    for (int c = 0; c < kInFlight; ++c) {
      const int64_t at = place(c);
      if (at < 0) continue;
      constexpr auto kRowOf = [](int each) { return each / kOfRow; };
      const bool valid = row_at(kRowOf(c)) < num_valid;
      float x[2 * N], g[N], act[N];
      pairs[c].unpack_to(x);
      unpack(grads[c], g);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float gate = x[2 * i], up = x[2 * i + 1], s = sigmoid<T>(gate), silu = gate * s;
        act[i] = silu * up;
        if (valid) dot[kRowOf(c)] += g[i] * act[i];
        const float grad = scale[kRowOf(c)] * g[i];
        x[2 * i] = valid ? grad * up * (s + silu * (1.0f - s)) : 0.0f;
        x[2 * i + 1] = valid ? grad * silu : 0.0f;
        act[i] = valid ? act[i] * scale[kRowOf(c)] : 0.0f;
      }
      Pairs<T, N>::store(grad_gate_up + 2 * at, x);
      if (act_scaled != nullptr) store_pack(act_scaled + at, pack_of<T, N>(act));
    }
  }
  if (grad_row_scale == nullptr) return;
  sum_row(dot, shared);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = row_at(r);
    if (threadIdx.x == 0 && row < num_rows && (slots == nullptr || row < num_valid))
      grad_row_scale[slot[r]] = dot[r];
  }
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
      constexpr int kOutputs = N > 1 ? N / 2 : 1;
      const RowShape shape = row_shape(std::max<int64_t>(1, a.width / kOutputs), kInFlight, 256);
      const dim3 block(shape.threads_per_row, shape.rows_per_block);
      const auto launch = [&]<int ROWS>(Constant<ROWS>) {
        const int blocks = grid_size(ceil_div(a.num_rows, shape.rows_per_block * ROWS));
        swiglu_backward_kernel<T, kOutputs, ROWS><<<blocks, block, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.gate_up), static_cast<const T*>(a.grad_out), a.row_scale, a.slots,
            static_cast<T*>(a.grad_gate_up), static_cast<T*>(a.act_scaled), a.grad_row_scale, a.valid_rows,
            a.num_rows, static_cast<int>(a.width));
      };
      switch (shape.chunks_per_thread) {
        case 1:
          launch(Constant<kInFlight>{});
          break;
        case 2:
          launch(Constant<kInFlight / 2>{});
          break;
        default:
          launch(Constant<1>{});
      }
      MOEBIUS_CUDA_CHECK_LAUNCH("swiglu_backward");
    });
  });
}

}  // namespace moebius::kernels::cuda
