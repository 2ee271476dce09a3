// One block of a matrix product, C(m, n) = A(m, k) x B(k, n), done by one thread: packs both operands into
// panels that the caches hold and runs register tiles over them. grouped_gemm.cpp cuts a grouped product into
// such blocks. The loop structure follows Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix
// Multiplication", with the left operand packed one register panel at a time, since a block of the right one
// stays in the second-level cache.
//
// A sum over k runs in the same order for every split of m and n, so the result does not depend on how a
// product is cut into blocks, nor on the thread that runs them (blocks of at most kSkinnyRows rows sum in
// another order).
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels::cpu {

// Row-major matrix whose rows may be reached through an index: row r is data[(index[r] / divisor) * stride
// ...], or data[r * stride ...] without one. Strides count elements.
struct GemmOperand {
  const void* data;
  int64_t stride;
  const int32_t* index;
  int64_t divisor;
};

struct GemmBlock {
  GemmOperand a;  // (m, k), or (k, m) with a_rows_are_k
  GemmOperand b;  // (n, k), or (k, n) with b_rows_are_k
  void* out;      // (m, n) row-major
  int64_t out_stride;
  int64_t m, n, k;  // any of them may be 0; k = 0 gives zeros
  bool a_rows_are_k;
  bool b_rows_are_k;
  bool accumulate;  // add to out
  DType dtype;      // of a and b
  DType out_dtype;
};

void run_gemm_block(const GemmBlock& block);

// Geometry of the instruction set in use, for cutting products into blocks.
struct GemmGeometry {
  int64_t tile_rows;          // rows of C in a register tile
  int64_t tile_cols;          // columns of C in a register tile
  int64_t max_words;          // 32-bit words along k that are summed in registers before C is touched
  int64_t elements_per_word;  // 1, or 2 when bf16 pairs are multiplied by one instruction
  const char* name;           // "AVX3", "AVX3+BF16", ...
};

GemmGeometry gemm_geometry(DType dtype);

// Blocks of this many rows or fewer against rows of B (a_rows_are_k and b_rows_are_k false) skip packing.
inline constexpr int64_t kSkinnyRows = 4;

}  // namespace moebius::kernels::cpu
