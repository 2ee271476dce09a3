// Cross-entropy and its gradient (kernels/api/loss.h): a block per row, which stays in registers between the
// statistics and the gradient, so that the logits are read once. Rows too long for that are read twice. A
// target outside the vocabulary cannot be reported from here: it makes the row's loss and gradient NaN, which
// the trainer catches.
#include <cmath>

#include "kernels/api/loss.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// exp(x - shift): for bf16 by one multiply-add and the hardware's power of two, with the same rounded shift
// in the sum and in the gradient, so that its error cancels.
template <class T>
struct ShiftedExp {
  float shift, scaled;
  __device__ __forceinline__ explicit ShiftedExp(float max) : shift(max), scaled(max * kLog2E) {}
  __device__ __forceinline__ float operator()(float x) const {
    if constexpr (sizeof(T) == 2) {
      float y;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaf(x, kLog2E, -scaled)));
      return y;
    }
    return expf(x - shift);
  }
};

// Maximum over the block; every thread gets it. `shared`: 32 floats.
__device__ __forceinline__ float max_block(float x, float* shared) {
  x = max_lanes(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  const int warps = blockDim.x / 32;
  x = shared[0];
  for (int w = 1; w < warps; ++w) x = fmaxf(x, shared[w]);
  return x;
}

// Two blocks of up to 512 threads share a multiprocessor, so that one reads while the other computes.
template <class T, int N, int C, int THREADS>
__global__ void __launch_bounds__(THREADS, THREADS <= 512 ? 1024 / THREADS : 1)
    cross_entropy_kernel(const T* logits,                      // (R, V)
                         const int64_t* __restrict__ targets,  // (R)
                         float* __restrict__ loss,             // (R) out
                         T* grad_logits,                       // (R, V) out, may be logits; or null
                         const float* __restrict__ scale_at,   // (1)
                         int vocab) {
  __shared__ float shared[32 + 32];
  const int64_t row = blockIdx.x;
  const T* in = logits + row * vocab;
  T* grad = grad_logits == nullptr ? nullptr : grad_logits + row * vocab;
  const int64_t wanted = targets[row];
  const int chunks = vocab / N;
  if (wanted == kIgnoredTarget) {
    if (threadIdx.x == 0) loss[row] = 0.0f;
    if (grad == nullptr) return;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS)
      store_pack(grad + chunk * N, zero_pack<T, N>());
    return;
  }
  const bool known = wanted >= 0 && wanted < vocab;
  const int target = known ? static_cast<int>(wanted) : -1;
  // Read before any thread may write its gradient in the same place.
  const float target_logit = known ? to_float(in[target]) : __int_as_float(0x7fffffff);

  Pack<T, N> held[C > 0 ? C : 1];
  const auto chunk_of = [&](int c) { return c * THREADS + static_cast<int>(threadIdx.x); };
  float max = -INFINITY, sum[1] = {0.0f};
  if constexpr (C > 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (chunk_of(c) < chunks) held[c] = load_pack<T, N>(in + chunk_of(c) * N);
    }
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (chunk_of(c) < chunks) {
        float x[N];
        unpack(held[c], x);
#pragma unroll
        for (int i = 0; i < N; ++i) max = fmaxf(max, x[i]);
      }
    }
    max = max_block(max, shared);
    const ShiftedExp<T> shifted_exp(max);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (chunk_of(c) < chunks) {
        float x[N];
        unpack(held[c], x);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[0] += shifted_exp(x[i]);
      }
    }
  } else {
    // Running maximum and sum in one pass (Milakov & Gimelshein 2018), then all threads to the block's
    // maximum.
    float mine = -INFINITY, partial = 0.0f;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
      float x[N], top = mine;
      unpack(load_pack<T, N>(in + chunk * N), x);
#pragma unroll
      for (int i = 0; i < N; ++i) top = fmaxf(top, x[i]);
      if (top > mine) {
        partial *= expf(mine - top);
        mine = top;
      }
      const ShiftedExp<T> shifted_exp(mine);
#pragma unroll
      for (int i = 0; i < N; ++i) partial += shifted_exp(x[i]);
    }
    max = max_block(mine, shared);
    if (mine > -INFINITY) sum[0] = partial * expf(mine - max);
  }
  sum_row(sum, shared + 32);
  const float log_sum = logf(sum[0]);
  const float log_p = (target_logit - max) - log_sum;
  if (threadIdx.x == 0) loss[row] = -log_p;
  if (grad == nullptr) return;

  const float scale = *scale_at;
  const float factor = known ? scale / sum[0] : log_p;            // log_p is NaN there
  const float at_target = known ? scale * expm1f(log_p) : log_p;  // p - 1 without cancellation
  const ShiftedExp<T> shifted_exp(max);
  const auto store_gradient = [&](int chunk, const Pack<T, N>& pack) {
    float x[N];
    unpack(pack, x);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = shifted_exp(x[i]) * factor;
    const int offset = target - chunk * N;
    if (offset >= 0 && offset < N) {
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = offset == i ? at_target : x[i];
    }
    store_pack(grad + chunk * N, pack_of<T, N>(x));
  };
  if constexpr (C > 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (chunk_of(c) < chunks) store_gradient(chunk_of(c), held[c]);
    }
  } else {
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS)
      store_gradient(chunk, load_pack<T, N>(in + chunk * N));
  }
}

template <class T, int N, int C, int THREADS>
void launch(const CrossEntropyArgs& a, Stream stream) {
  cross_entropy_kernel<T, N, C, THREADS><<<grid_size(a.num_rows), THREADS, 0, cuda_stream(stream)>>>(
      static_cast<const T*>(a.logits), a.targets, a.loss, static_cast<T*>(a.grad_logits), a.scale,
      static_cast<int>(a.vocab));
  MOEBIUS_CUDA_CHECK_LAUNCH("cross_entropy");
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& a, Stream stream) {
  if (a.num_rows == 0) return;
  with_dtype(a.dtype, [&]<class T>(T) {
    with_vector<T>(vector_elements(a.vocab, sizeof(T), {a.logits, a.grad_logits}), [&]<int N>(Constant<N>) {
      const int64_t chunks = a.vocab / N;
      if (chunks <= 128) return launch<T, N, 1, 128>(a, stream);
      if (chunks <= 512) return launch<T, N, 2, 256>(a, stream);
      if (chunks <= 1024) return launch<T, N, 4, 256>(a, stream);
      if (chunks <= 4096) return launch<T, N, 8, 512>(a, stream);
      if (chunks <= 8192) return launch<T, N, 8, 1024>(a, stream);
      launch<T, N, 0, 1024>(a, stream);
    });
  });
}

}  // namespace moebius::kernels::cuda
