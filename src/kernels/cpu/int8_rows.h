// Scaling and activation of a tile of integer sums. Part of int8_gemm.cpp, compiled per instruction set.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels::cpu {

struct Int8StoreArgs {
  const int32_t* sums;      // [row][32]
  const float* row_scales;  // (num_rows * digits)
  const float* col_scales;  // (32)
  const int32_t* offsets;   // (32), taken off the sums
  const float* bias;        // (cols), or null
  void* out;                // of the first row and column; row-major
  int64_t out_stride;       // elements
  int64_t num_rows;         // of out; `digits` rows of sums each
  int64_t digits;
  int64_t cols;  // to write: up to 32, or 16 with swiglu
  bool swiglu;   // sums are of 16 gates and their 16 ups
  DType dtype;
};

void store_int8_tile(const Int8StoreArgs& args);

}  // namespace moebius::kernels::cpu
