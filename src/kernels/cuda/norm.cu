// RMSNorm forward and backward (kernels/api/norm.h). Memory-bound: the forward reads x (and residual) and
// writes y (and the sum) once, with the row held in registers between the statistics and the result; the
// backward reads s, grad_y (and grad_sum) and writes grad_s once. The weight's gradient is summed per block
// in registers and over blocks by a second small kernel, always in the same order.
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kForwardChunks = 4, kForwardThreads = 1024, kBackwardChunks = 2, kBackwardThreads = 512;

// A block is (threads per row, rows). C chunks of N elements for each thread; C == 0: as many as it takes,
// read twice.
template <class T, int N, int C>
__global__ void __launch_bounds__(kForwardThreads)
    rms_norm_forward_kernel(const T* __restrict__ x,         // (R, D)
                            const T* __restrict__ residual,  // (R, D) or null
                            T* __restrict__ sum,             // (R, D) out, or null
                            const T* __restrict__ weight,    // (D)
                            T* __restrict__ y,               // (R, D) out
                            float* __restrict__ inv_rms,     // (R) out
                            int64_t num_rows, int width, float eps) {
  __shared__ float shared[32 * 32];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool active = row < num_rows;
  const int64_t begin = row * width;
  const int chunks = width / N;
  const auto load_sum = [&](int chunk, float(&s)[N]) {
    const int64_t at = begin + static_cast<int64_t>(chunk) * N;
    unpack(load_pack<T, N>(x + at), s);
    if (residual != nullptr) {
      float r[N];
      unpack(load_pack<T, N>(residual + at), r);
#pragma unroll
      for (int i = 0; i < N; ++i) s[i] += r[i];
      const Pack<T, N> rounded = pack_of<T, N>(s);
      store_pack(sum + at, rounded);
      unpack(rounded, s);
    }
  };
  float squares[1] = {0.0f};
  if constexpr (C > 0) {
    float s[C][N];
    if (active) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int chunk = c * blockDim.x + threadIdx.x;
        if (chunk < chunks) load_sum(chunk, s[c]);
      }
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (c * blockDim.x + threadIdx.x < chunks) {
#pragma unroll
          for (int i = 0; i < N; ++i) squares[0] += s[c][i] * s[c][i];
        }
      }
    }
    sum_row(squares, shared);
    if (!active) return;
    const float inv = rsqrtf(squares[0] / static_cast<float>(width) + eps);
    if (threadIdx.x == 0) inv_rms[row] = inv;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int chunk = c * blockDim.x + threadIdx.x;
      if (chunk < chunks) {
        float w[N];
        unpack(load_pack<T, N>(weight + chunk * N), w);
#pragma unroll
        for (int i = 0; i < N; ++i) w[i] *= s[c][i] * inv;
        store_pack(y + begin + chunk * N, pack_of<T, N>(w));
      }
    }
  } else {
    const T* again = residual != nullptr ? sum : x;
    if (active) {
      for (int chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
        float s[N];
        load_sum(chunk, s);
#pragma unroll
        for (int i = 0; i < N; ++i) squares[0] += s[i] * s[i];
      }
    }
    sum_row(squares, shared);
    if (!active) return;
    const float inv = rsqrtf(squares[0] / static_cast<float>(width) + eps);
    if (threadIdx.x == 0) inv_rms[row] = inv;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
      float s[N], w[N];
      unpack(load_pack<T, N>(again + begin + static_cast<int64_t>(chunk) * N), s);
      unpack(load_pack<T, N>(weight + chunk * N), w);
#pragma unroll
      for (int i = 0; i < N; ++i) w[i] *= s[i] * inv;
      store_pack(y + begin + static_cast<int64_t>(chunk) * N, pack_of<T, N>(w));
    }
  }
}

// Blocks walk over groups of rows. partial: (gridDim.x, D), the weight gradient of each block's rows.
template <class T, int N, int C>
__global__ void __launch_bounds__(kBackwardThreads)
    rms_norm_backward_kernel(const T* __restrict__ s,            // (R, D)
                             const T* __restrict__ weight,       // (D)
                             const float* __restrict__ inv_rms,  // (R)
                             const T* __restrict__ grad_y,       // (R, D)
                             const T* __restrict__ grad_sum,     // (R, D) or null
                             T* __restrict__ grad_s,             // (R, D) out
                             float* __restrict__ partial,        // out
                             int64_t num_rows, int width) {
  __shared__ float shared[32 * 32];
  constexpr int kHeld = C > 0 ? C : 1;
  const int chunks = width / N;
  const int64_t groups = (num_rows + blockDim.y - 1) / blockDim.y;
  float grad_weight[kHeld][N] = {};
  // Several rows of threads share a block only up to this width (row_shape), and never with C == 0.
  __shared__ __align__(16) float block_sum[256 * kBackwardChunks * N / (C == 0 ? 256 : 2)];
  float* mine = partial + static_cast<int64_t>(blockIdx.x) * width;
  if constexpr (C == 0) {
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) {
      for (int j = 0; j < N; ++j) mine[i * N + j] = 0.0f;
    }
  }
  const float inv_width = 1.0f / static_cast<float>(width);
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t row = group * blockDim.y + threadIdx.y;
    const bool active = row < num_rows;
    const int64_t begin = row * width;
    const float inv = active ? inv_rms[row] : 0.0f;
    float dot[1] = {0.0f};
    if constexpr (C > 0) {
      Pack<T, N> rows[C], grads[C];
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int chunk = c * blockDim.x + threadIdx.x;
        if (active && chunk < chunks) {
          rows[c] = load_pack<T, N>(s + begin + chunk * N);
          grads[c] = load_pack<T, N>(grad_y + begin + chunk * N);
        } else {
          rows[c] = grads[c] = zero_pack<T, N>();
        }
      }
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int chunk = c * blockDim.x + threadIdx.x;
        if (chunk < chunks) {
          float x[N], g[N], w[N];
          unpack(rows[c], x);
          unpack(grads[c], g);
          unpack(load_pack<T, N>(weight + chunk * N), w);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const float gx = g[i] * (x[i] * inv);
            grad_weight[c][i] += gx;
            dot[0] += gx * w[i];
          }
        }
      }
      sum_row(dot, shared);
      if (!active) continue;
      const float pull = dot[0] * inv_width;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int chunk = c * blockDim.x + threadIdx.x;
        if (chunk < chunks) {
          float x[N], g[N], w[N], out[N];
          unpack(rows[c], x);
          unpack(grads[c], g);
          unpack(load_pack<T, N>(weight + chunk * N), w);
#pragma unroll
          for (int i = 0; i < N; ++i) out[i] = inv * (g[i] * w[i] - x[i] * inv * pull);
          if (grad_sum != nullptr) {
            float add[N];
            unpack(load_pack<T, N>(grad_sum + begin + chunk * N), add);
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] += add[i];
          }
          store_pack(grad_s + begin + chunk * N, pack_of<T, N>(out));
        }
      }
    } else {
      if (active) {
        for (int chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
          float x[N], g[N], w[N];
          unpack(load_pack<T, N>(s + begin + static_cast<int64_t>(chunk) * N), x);
          unpack(load_pack<T, N>(grad_y + begin + static_cast<int64_t>(chunk) * N), g);
          unpack(load_pack<T, N>(weight + chunk * N), w);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const float gx = g[i] * (x[i] * inv);
            mine[chunk * N + i] += gx;
            dot[0] += gx * w[i];
          }
        }
      }
      sum_row(dot, shared);
      if (!active) continue;
      const float pull = dot[0] * inv_width;
      for (int chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
        const int64_t at = begin + static_cast<int64_t>(chunk) * N;
        float x[N], g[N], w[N], out[N], add[N] = {};
        unpack(load_pack<T, N>(s + at), x);
        unpack(load_pack<T, N>(grad_y + at), g);
        unpack(load_pack<T, N>(weight + chunk * N), w);
        if (grad_sum != nullptr) unpack(load_pack<T, N>(grad_sum + at), add);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = inv * (g[i] * w[i] - x[i] * inv * pull) + add[i];
        store_pack(grad_s + at, pack_of<T, N>(out));
      }
    }
  }
  if constexpr (C > 0) {
    // The rows of threads add up one after the other; the last one writes.
    for (unsigned y = 0; y < blockDim.y; ++y) {
      __syncthreads();
      if (threadIdx.y != y) continue;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int chunk = c * blockDim.x + threadIdx.x;
        if (chunk >= chunks) continue;
        if (y > 0) {
#pragma unroll
          for (int i = 0; i < N; ++i) grad_weight[c][i] += block_sum[chunk * N + i];
        }
        store_floats<N>(y + 1 < blockDim.y ? block_sum + chunk * N : mine + chunk * N, grad_weight[c]);
      }
    }
  }
}

}  // namespace

void rms_norm_forward(const RmsNormForwardArgs& a, Stream stream) {
  if (a.num_rows == 0 || a.width == 0) return;
  with_dtype(a.dtype, [&]<class T>(T) {
    const int elements = vector_elements(a.width, sizeof(T), {a.x, a.residual, a.sum, a.weight, a.y});
    with_vector<T>(elements, [&]<int N>(Constant<N>) {
      const RowShape shape = row_shape(a.width / N, kForwardChunks, kForwardThreads);
      with_chunks(shape.chunks_per_thread, [&]<int C>(Constant<C>) {
        const dim3 block(shape.threads_per_row, shape.rows_per_block);
        const int blocks = grid_size(ceil_div(a.num_rows, shape.rows_per_block));
        rms_norm_forward_kernel<T, N, C><<<blocks, block, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.x), static_cast<const T*>(a.residual), static_cast<T*>(a.sum),
            static_cast<const T*>(a.weight), static_cast<T*>(a.y), a.inv_rms, a.num_rows,
            static_cast<int>(a.width), a.eps);
        MOEBIUS_CUDA_CHECK_LAUNCH("rms_norm_forward");
      });
    });
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& a, Stream stream) {
  if (a.width == 0) return;
  const int multiprocessors = num_multiprocessors();
  with_dtype(a.dtype, [&]<class T>(T) {
    const int elements = vector_elements(a.width, sizeof(T), {a.s, a.weight, a.grad_y, a.grad_sum, a.grad_s});
    with_vector<T>(elements, [&]<int N>(Constant<N>) {
      const RowShape shape = row_shape(a.width / N, kBackwardChunks, kBackwardThreads);
      with_chunks(shape.chunks_per_thread, [&]<int C>(Constant<C>) {
        const dim3 block(shape.threads_per_row, shape.rows_per_block);
        const int64_t threads = static_cast<int64_t>(block.x) * block.y;
        const int blocks = persistent_blocks(ceil_div(a.num_rows, shape.rows_per_block), multiprocessors,
                                             static_cast<int>(1024 / threads));
        float* partial = scratch_of<float>(static_cast<size_t>(blocks * a.width), cuda_stream(stream));
        rms_norm_backward_kernel<T, N, C><<<blocks, block, 0, cuda_stream(stream)>>>(
            static_cast<const T*>(a.s), static_cast<const T*>(a.weight), a.inv_rms,
            static_cast<const T*>(a.grad_y), static_cast<const T*>(a.grad_sum), static_cast<T*>(a.grad_s),
            partial, a.num_rows, static_cast<int>(a.width));
        MOEBIUS_CUDA_CHECK_LAUNCH("rms_norm_backward");
        sum_columns(partial, blocks, a.width, a.width, a.grad_weight, cuda_stream(stream));
      });
    });
  });
}

}  // namespace moebius::kernels::cuda
