// Matrix products of attention, and the sizes of their blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/gemm_block.h"

namespace moebius::kernels::cpu {

// Queries of a block: enough to make up for packing the keys, few enough that a block does not compute much
// above the diagonal and that its scores stay in the second-level cache.
inline constexpr int64_t kMostQueries = 64, kLeastQueries = 16, kScoresInCache = int64_t{1} << 16;

inline int64_t queries_per_block(int64_t length) {
  return std::clamp(kScoresInCache / std::max<int64_t>(length, 1), kLeastQueries, kMostQueries);
}

struct AttentionProduct {
  const void* a;
  int64_t a_stride;
  bool a_rows_are_k;
  const void* b;
  int64_t b_stride;
  bool b_rows_are_k;
  int64_t m, n, k;
};

inline void multiply(const AttentionProduct& p, DType dtype, void* out, int64_t out_stride, DType out_dtype,
                     bool accumulate = false) {
  run_gemm_block({.a = {p.a, p.a_stride, nullptr, 1},
                  .b = {p.b, p.b_stride, nullptr, 1},
                  .out = out,
                  .out_stride = out_stride,
                  .m = p.m,
                  .n = p.n,
                  .k = p.k,
                  .a_rows_are_k = p.a_rows_are_k,
                  .b_rows_are_k = p.b_rows_are_k,
                  .accumulate = accumulate,
                  .dtype = dtype,
                  .out_dtype = out_dtype});
}

// Elements of the dtype in a row of `floats` floats.
inline int64_t elements_of(int64_t floats, DType dtype) {
  return floats * size_of(DType::f32) / size_of(dtype);
}

}  // namespace moebius::kernels::cpu
