// What becomes of the sums of a tile in the grouped product (grouped_kernel.cuh): each warp turns its 16 rows
// into whole lines through 2 KiB of shared memory of its own and stores the rows that belong to the group.
#pragma once

#include "kernels/cuda/grouped_kernel.cuh"

namespace moebius::kernels::cuda {

__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float low_half(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_half(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ uint4 load_shared(uint32_t at) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at)
               : "memory");
  return x;
}
// x, with what lies at `to` added to it when `add`, to there.
__device__ __forceinline__ void store_eight(uint4 x, __nv_bfloat16* to, bool add) {
  uint4* const at = reinterpret_cast<uint4*>(to);
  if (add) {
    const uint4 y = *at;
    x = {bf16_pair(low_half(x.x) + low_half(y.x), high_half(x.x) + high_half(y.x)),
         bf16_pair(low_half(x.y) + low_half(y.y), high_half(x.y) + high_half(y.y)),
         bf16_pair(low_half(x.z) + low_half(y.z), high_half(x.z) + high_half(y.z)),
         bf16_pair(low_half(x.w) + low_half(y.w), high_half(x.w) + high_half(y.w))};
  }
  *at = x;
}

// 16 rows x 64 columns from the staging area to `out` (pitch in elements; `out` at the chunk's first row and
// column), the rows below `rows` and columns below `columns`.
__device__ __forceinline__ void store_chunk(uint32_t staging, __nv_bfloat16* out, int64_t pitch, int rows,
                                            int columns, bool add, int lane) {
  const int chunk = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + lane / 8;
    if (row >= rows || chunk * 8 >= columns) continue;
    store_eight(load_shared(staging + row * 128 + ((chunk ^ (row % 8)) * 16)), out + row * pitch + chunk * 8,
                add);
  }
}

// Sums as bf16 pairs: pair 2 j + h holds columns 8 j + 2 (lane % 4) and the next of row lane / 4 + 8 h.
// Packed before anything else, they leave half of the registers to what follows.
template <int COLUMNS>
struct PackedSums {
  uint32_t at[COLUMNS / 4];
  __device__ __forceinline__ void pack(const float (&d)[COLUMNS / 2]) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 4; ++i) {
      at[i] = bf16_pair(d[2 * i], d[2 * i + 1]);
      asm volatile("" : "+r"(at[i]));
    }
  }
};

// The 4 x 4 words that the four lanes of a quad hold are turned: lane q gets word q of each, in the order of
// the lanes.
__device__ __forceinline__ uint4 turned(uint32_t a, uint32_t b, uint32_t c, uint32_t d, int quarter) {
  const bool odd = quarter % 2 != 0, high = quarter / 2 != 0;
  const uint32_t x = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1),
                 y = __shfl_xor_sync(0xffffffffu, odd ? c : d, 1);
  a = odd ? x : a;
  b = odd ? b : x;
  c = odd ? y : c;
  d = odd ? d : y;
  const uint32_t u = __shfl_xor_sync(0xffffffffu, high ? a : c, 2),
                 v = __shfl_xor_sync(0xffffffffu, high ? b : d, 2);
  return high ? uint4{u, v, c, d} : uint4{a, b, u, v};
}

__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}

__device__ __forceinline__ float activation_of(uint32_t pair) {
  const float gate = low_half(pair);
  return gate * sigmoid_of(gate) * high_half(pair);
}

// WHOLE: all rows and columns are there.
template <int COLUMNS, bool WHOLE>
__device__ __forceinline__ void store_activations(const PackedSums<COLUMNS>& sums, __nv_bfloat16* act,
                                                  int64_t pitch, int rows, int columns, int lane) {
  static_assert(COLUMNS % 64 == 0);
  const int quarter = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    __nv_bfloat16* const to = act + row * pitch + 8 * quarter;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j += 8) {
      // Word i: this lane's activations of column groups j + 2 i and the next, 4 activations each.
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t* at = sums.at + 2 * (j + 2 * i) + half;
        word[i] = bf16_pair(activation_of(at[0]), activation_of(at[2]));
      }
      const uint4 all = turned(word[0], word[1], word[2], word[3], quarter);
      const uint4 sorted{low_halves(all.x, all.y), low_halves(all.z, all.w), high_halves(all.x, all.y),
                         high_halves(all.z, all.w)};
      if (WHOLE || (row < rows && 4 * j + 8 * quarter < columns))
        *reinterpret_cast<uint4*>(to + 4 * j) = sorted;
    }
  }
}

// All 16 rows of a tile's part, all columns, nothing added: without a branch, so that a chunk's loads from
// the staging area run while the one before it is stored and the next one is put there.
template <int COLUMNS>
__device__ __forceinline__ void store_whole(const PackedSums<COLUMNS>& sums, uint32_t staging,
                                            __nv_bfloat16* out, int64_t pitch, int lane) {
  constexpr int kChunks = COLUMNS / 64;
  const int row = lane % 16, half = lane / 16, chunk = lane % 8;
  uint32_t to[4], from[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int stored = i * 4 + lane / 8;
    to[i] = staging + row * 128 + (((2 * i + half) ^ (row % 8)) * 16);
    from[i] = staging + stored * 128 + ((chunk ^ (stored % 8)) * 16);
  }
  __nv_bfloat16* const first = out + (lane / 8) * pitch + chunk * 8;
  uint4 held[2][4];
  const auto store = [&](int c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) *reinterpret_cast<uint4*>(first + 4 * i * pitch + 64 * c) = held[c % 2][i];
  };
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t* at = sums.at + 16 * c + 4 * i;
      store_matrices(to[i], at[0], at[1], at[2], at[3]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) held[c % 2][i] = load_shared(from[i]);
    if (c > 0) store(c - 1);
  }
  store(kChunks - 1);
}

template <int COLUMNS>
__device__ __forceinline__ void store_bf16(const PackedSums<COLUMNS>& sums, uint32_t staging,
                                           __nv_bfloat16* out, int64_t pitch, int rows, int columns, bool add,
                                           int lane) {
  if (rows >= 16 && columns >= COLUMNS && !add) {
    store_whole<COLUMNS>(sums, staging, out, pitch, lane);
    return;
  }
  const int row = lane % 16, half = lane / 16;
#pragma unroll
  for (int c = 0; c < COLUMNS / 64; ++c) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const uint32_t* at = sums.at + 2 * (8 * c + j);
      store_matrices(staging + row * 128 + (((j + half) ^ (row % 8)) * 16), at[0], at[1], at[2], at[3]);
    }
    __syncwarp();
    store_chunk(staging, out + 64 * c, pitch, rows, columns - 64 * c, add, lane);
  }
}

// act = silu(gate) * up of the sums, whose neighbouring columns are gate and up: COLUMNS sums give COLUMNS /
// 2 activations a row, written straight from the registers.
template <int COLUMNS>
__device__ __forceinline__ void store_swiglu(const PackedSums<COLUMNS>& sums, __nv_bfloat16* act,
                                             int64_t pitch, int rows, int columns, int lane) {
  const bool whole = rows >= 16 && columns >= COLUMNS / 2;
  whole ? store_activations<COLUMNS, true>(sums, act, pitch, rows, columns, lane)
        : store_activations<COLUMNS, false>(sums, act, pitch, rows, columns, lane);
}

}  // namespace moebius::kernels::cuda
