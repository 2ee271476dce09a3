// The SIMD half of the CPU's int4 product (int4_gemm.cpp), compiled per instruction set.
#pragma once

#include <cstdint>

#include "kernels/api/types.h"

namespace moebius::kernels::cpu {

// Packed int4 (kernels/api/int4_gemm.h) to the int8 panel of the tiles: 64 bytes of `packed` give 128 of
// `codes`.
void unpack_int4(const uint8_t* packed, int64_t num_lines, int8_t* codes);

// total[row][32] += col_scales[32] x sum over the digits d of row: row_scales x (sums - 128 code_sums).
struct Int4AddArgs {
  const int32_t* sums;  // [row * digits][32]
  const float* row_scales;
  const float* col_scales;
  const int16_t* code_sums;
  float* total;
  int64_t num_rows, digits;
};
void add_int4_group(const Int4AddArgs& args);

// total[num_rows][32] (plus bias) to rows of `out`, `out_stride` elements apart; `cols` columns of it.
struct Int4StoreArgs {
  const float* total;
  const float* bias;  // or null
  void* out;
  int64_t out_stride, num_rows, cols;
  DType dtype;
};
void store_int4(const Int4StoreArgs& args);

}  // namespace moebius::kernels::cpu
