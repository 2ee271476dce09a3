// What becomes of the sums of a 64-row part of a tile in the integer product (int8_kernel.cuh).
#pragma once

#include "kernels/cuda/grouped_epilogue.cuh"
#include "kernels/cuda/int8_kernel.cuh"

namespace moebius::kernels::cuda {

// Scales of this thread's two rows of a part, for each digit.
template <int DIGITS>
struct RowScales {
  float at[DIGITS][2];
};

// The scales of a tile are asked for when its first stage is multiplied and used after the last, so that
// nothing waits for them. Row scales: lane l has that of row l % 16 of the warp's 16 in part l / 16 (digits
// count as parts); rows that are not there have 0. `row`: the warp's first row of the tile's first part, of
// all rows.
template <class K>
__device__ __forceinline__ float fetch_row_scale(const Int8KernelParams& p, int32_t row, int32_t end,
                                                 int lane) {
  const int part = lane / 16;
  const int32_t r = row + lane % 16 + (K::kDigits == 1 ? 64 * part : 0), digit = K::kDigits == 1 ? 0 : part;
  if (r >= end || part >= K::kParts) return 0.0f;
  int32_t from = r;
  if (p.scale_index != nullptr) {
    const int32_t slot = __ldg(p.scale_index + r);
    if (slot < 0) return 0.0f;
    from = static_cast<int32_t>(divide(static_cast<uint32_t>(slot), p.divisor));
  }
  float scale;  // volatile, or the compiler moves the load down to its use
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(scale) : "l"(p.a_scales + digit * p.num_a_rows + from));
  return scale;
}

template <class K>
__device__ __forceinline__ RowScales<K::kDigits> row_scales(float fetched, int part, int lane) {
  RowScales<K::kDigits> scales;
#pragma unroll
  for (int digit = 0; digit < K::kDigits; ++digit) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      scales.at[digit][half] =
          __shfl_sync(0xffffffffu, fetched, 16 * (K::kDigits == 1 ? part : digit) + 8 * half + lane / 4);
  }
  return scales;
}

// Column scales: copied to the warp's staging memory. `columns`: how many there are from the tile's first on.
template <class K>
__device__ __forceinline__ void fetch_column_scales(const float* scales, int columns, uint32_t staging,
                                                    int lane) {
  __syncwarp();  // the memory held results of the tile before
  for (int chunk = lane; chunk < K::kColumns / 4; chunk += 32) {
    const bool present = 4 * chunk < columns;
    copy_chunk(staging + 16 * chunk, scales + (present ? 4 * chunk : 0), present);
  }
  copy_commit();
}
__device__ __forceinline__ void column_scales_are_there() {
  copy_wait<0>();
  __syncwarp();
}
// Of columns 8 j + 2 (lane % 4) and the next.
__device__ __forceinline__ float2 column_scales(uint32_t staging, int j, int lane) {
  float2 s;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(s.x), "=f"(s.y)
               : "r"(staging + 32 * j + 8 * (lane % 4))
               : "memory");
  return s;
}

// Value at sum `i` of a part: row scales first, digit by digit, then the column's, each rounded by itself, as
// the CPU does.
template <class K>
__device__ __forceinline__ float scaled_sum(const int32_t (&d)[K::kDigits][K::kColumns / 2], int i,
                                            const RowScales<K::kDigits>& rows, float column) {
  const int half = (i / 2) % 2;
  float v = __fmul_rn(static_cast<float>(d[0][i]), rows.at[0][half]);
  if constexpr (K::kDigits == 2) v = __fmaf_rn(static_cast<float>(d[1][i]), rows.at[1][half], v);
  return __fmul_rn(v, column);
}

__device__ __forceinline__ void store_one(void* out, int64_t at, Int8Output type, float value) {
  if (type == Int8Output::f32) {
    static_cast<float*>(out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(value);
  }
}

// Where a part of a tile goes: its first row of this warp, counted from the group's and from all rows, and
// how many rows and columns of it are there.
struct PartPlace {
  int32_t group, column;
  int64_t first_row;
  int rows, columns;
  __device__ __forceinline__ bool is_empty() const { return rows <= 0 || columns <= 0; }
};

// Scaled sums in bf16, half of the registers.
template <class K>
__device__ __forceinline__ PackedSums<K::kColumns> pack_int8_part(
    const int32_t (&d)[K::kDigits][K::kColumns / 2], const RowScales<K::kDigits>& scales, uint32_t staging,
    int lane) {
  PackedSums<K::kColumns> packed;
#pragma unroll
  for (int j = 0; j < K::kColumns / 8; ++j) {
    const float2 s = column_scales(staging, j, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 4 * j + 2 * half;
      packed.at[i / 2] = bf16_pair(scaled_sum<K>(d, i, scales, s.x), scaled_sum<K>(d, i + 1, scales, s.y));
      asm volatile("" : "+r"(packed.at[i / 2]));
    }
  }
  return packed;
}

template <class K>
__device__ __forceinline__ void store_packed_part(const Int8KernelParams& p,
                                                  const PackedSums<K::kColumns>& packed, uint32_t staging,
                                                  const PartPlace& at, int lane) {
  auto* const out = static_cast<__nv_bfloat16*>(p.out);
  if constexpr (K::kSwiglu) {
    if (p.gate_up != nullptr)
      store_bf16<K::kColumns>(packed, staging,
                              static_cast<__nv_bfloat16*>(p.gate_up) + at.first_row * p.n + at.column, p.n,
                              at.rows, at.columns, false, lane);
    store_swiglu<K::kColumns>(packed, out + at.first_row * (p.n / 2) + at.column / 2, p.n / 2, at.rows,
                              at.columns / 2, lane);
  } else {
    store_bf16<K::kColumns>(packed, staging, out + at.first_row * p.n + at.column, p.n, at.rows, at.columns,
                            false, lane);
  }
}

// Straight from the registers: sums, fp32, a bias, few columns, or rows that are not aligned.
template <class K>
__device__ __forceinline__ void store_int8_part(const Int8KernelParams& p,
                                                const int32_t (&d)[K::kDigits][K::kColumns / 2],
                                                const RowScales<K::kDigits>& scales, uint32_t staging,
                                                const PartPlace& at, int lane) {
  const int quarter = lane % 4, own = lane / 4, rows = at.rows, columns = at.columns;
  const int64_t first_row = at.first_row;
  const int32_t column = at.column;
  if (p.output == Int8Output::sums) {
    if constexpr (K::kDigits == 1) {
      int32_t* out = static_cast<int32_t*>(p.out) + first_row * p.n + column;
#pragma unroll
      for (int i = 0; i < K::kColumns / 2; ++i) {
        const int r = own + 8 * ((i / 2) % 2), c = 8 * (i / 4) + 2 * quarter + i % 2;
        if (r < rows && c < columns) out[static_cast<int64_t>(r) * p.n + c] = d[0][i];
      }
    }
    return;
  }
  const float* bias = p.bias == nullptr ? nullptr : p.bias + static_cast<int64_t>(at.group) * p.n + column;
#pragma unroll
  for (int j = 0; j < K::kColumns / 8; ++j) {
    const float2 s = column_scales(staging, j, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 4 * j + 2 * half, r = own + 8 * half, c = 8 * j + 2 * quarter;
      if (r >= rows || c >= columns) continue;
      float x = scaled_sum<K>(d, i, scales, s.x), y = scaled_sum<K>(d, i + 1, scales, s.y);
      if constexpr (K::kSwiglu) {
        if (p.gate_up != nullptr) {
          store_one(p.gate_up, (first_row + r) * p.n + column + c, Int8Output::bf16, x);
          store_one(p.gate_up, (first_row + r) * p.n + column + c + 1, Int8Output::bf16, y);
        }
        if (p.output == Int8Output::bf16) {  // as the other way does it
          x = to_float(__float2bfloat16_rn(x));
          y = to_float(__float2bfloat16_rn(y));
        }
        store_one(p.out, (first_row + r) * (p.n / 2) + (column + c) / 2, p.output, x * sigmoid_of(x) * y);
      } else {
        const int64_t to = (first_row + r) * p.n + column + c;
        const bool second = c + 1 < columns;
        if (bias != nullptr) {
          x = __fadd_rn(x, __ldg(bias + c));
          if (second) y = __fadd_rn(y, __ldg(bias + c + 1));
        }
        if (p.n % 2 != 0) {
          store_one(p.out, to, p.output, x);
          if (second) store_one(p.out, to + 1, p.output, y);
        } else if (p.output == Int8Output::f32) {
          *reinterpret_cast<float2*>(static_cast<float*>(p.out) + to) = float2{x, y};
        } else {
          *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p.out) + to) = bf16_pair(x, y);
        }
      }
    }
  }
}

}  // namespace moebius::kernels::cuda
