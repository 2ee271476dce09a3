// Device-side building blocks: accesses of N elements as floats, reductions over rows of threads, fast
// division.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/api/types.h"
#include "kernels/cuda/geometry.h"

namespace moebius::kernels::cuda {

using bf16 = __nv_bfloat16;

// N elements of T as one access (N * sizeof(T) up to 16 bytes), kept packed in registers.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <class T, int N>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& value) {
  *reinterpret_cast<Pack<T, N>*>(p) = value;
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void from_float(float x, float& out) {
  out = x;
}
__device__ __forceinline__ void from_float(float x, bf16& out) {
  out = __float2bfloat16_rn(x);
}

// Pairs of bf16 stay packed in 32-bit registers until they are needed: a shift or a mask makes each a float.
template <class T, int N>
__device__ __forceinline__ void unpack(const Pack<T, N>& pack, float (&x)[N]) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&pack);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = to_float(pack.at[i]);
  }
}

template <class T, int N>
__device__ __forceinline__ Pack<T, N> pack_of(const float (&x)[N]) {
  Pack<T, N> out;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    __nv_bfloat162* pairs = reinterpret_cast<__nv_bfloat162*>(&out);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) from_float(x[i], out.at[i]);
  }
  return out;
}

// Reads N elements as floats in accesses of at most 16 bytes.
template <int N, class T>
__device__ __forceinline__ void load_floats(const T* p, float (&x)[N]) {
  constexpr int kStep = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    float part[kStep];
    unpack(load_pack<T, kStep>(p + i), part);
#pragma unroll
    for (int j = 0; j < kStep; ++j) x[i + j] = part[j];
  }
}
template <int N, class T>
__device__ __forceinline__ void store_floats(T* p, const float (&x)[N]) {
  constexpr int kStep = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    float part[kStep];
#pragma unroll
    for (int j = 0; j < kStep; ++j) part[j] = x[i + j];
    store_pack<T, kStep>(p + i, pack_of<T, kStep>(part));
  }
}

// Two neighbouring chunks of N: 2N elements whose start is only known to be aligned as a chunk is.
template <class T, int N>
struct TwoChunks {
  Pack<T, N> first, second;
  __device__ __forceinline__ void load(const T* p) {
    first = load_pack<T, N>(p);
    second = load_pack<T, N>(p + N);
  }
  __device__ __forceinline__ void unpack_to(float (&x)[2 * N]) const {
    float low[N], high[N];
    unpack(first, low);
    unpack(second, high);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x[i] = low[i];
      x[N + i] = high[i];
    }
  }
  __device__ __forceinline__ static void store(T* p, const float (&x)[2 * N]) {
    float low[N], high[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      low[i] = x[i];
      high[i] = x[N + i];
    }
    store_pack(p, pack_of<T, N>(low));
    store_pack(p + N, pack_of<T, N>(high));
  }
};

template <class T, int N>
__device__ __forceinline__ Pack<T, N> zero_pack() {
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) from_float(0.0f, out.at[i]);
  return out;
}

// Sum over groups of `width` neighbouring lanes (a power of two); every lane gets it. The order of the
// additions is fixed, and the result is the same in every lane.
__device__ __forceinline__ float sum_lanes(float x, int width = 32) {
  for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ float max_lanes(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// Sums of COUNT values over the threads of a row, where a block is (threads_per_row, rows). Every thread of
// the block calls it. `shared`: COUNT * 32 floats for each row of the block; free again after the next
// barrier.
template <int COUNT>
__device__ __forceinline__ void sum_row(float (&x)[COUNT], float* shared) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i] = sum_lanes(x[i]);
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return;
  float* mine = shared + threadIdx.y * (COUNT * 32);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) mine[i * 32 + threadIdx.x / 32] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    float sum = 0.0f;
    for (int w = 0; w < warps; ++w) sum += mine[i * 32 + w];
    x[i] = sum;
  }
}

__device__ __forceinline__ uint32_t divide(uint32_t n, const FastDivisor& by) {
  return by.divisor == 1 ? n : __umulhi(n, by.multiplier) >> by.shift;
}

// 1 / (1 + exp(-x)) for a bf16 result. Denormals count as 0, in the results of both instructions too: a fifth
// of the instructions of __expf and a division.
__device__ __forceinline__ float sigmoid_of(float x) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return inverse;
}

}  // namespace moebius::kernels::cuda
