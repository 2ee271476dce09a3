// Products of int8 activations with int8 weights, summed exactly in 32 bits, scaled to floats in the same
// pass. Formats: int8_format.h. G groups of rows, each with its own weight matrix, as in grouped_gemm.h; one
// group makes it a dense product.
//
// Activations lie as bytes code + 128 (unsigned times signed is what the processors' dot-product
// instructions take); the 128 is taken out again by the sum of each weight column, exactly. Weights are
// packed once, in the order in which the product reads them: panels of kInt8PanelCols columns, each [k /
// 4][column] [4 codes], filled up with zeros to whole panels and to a multiple of kInt8StepK along k. One
// weight row (an output channel) has one scale.
#pragma once

#include "base/integers.h"
#include "kernels/api/int8_format.h"
#include "kernels/api/types.h"

namespace moebius::kernels {

inline constexpr int64_t kInt8PanelCols = 32;
inline constexpr int64_t kInt8StepK = 16;
// Sums of codes up to 127 x 127 fit 32 bits for every k up to this.
inline constexpr int64_t kInt8MaxK = 133'000;

constexpr int64_t int8_padded_k(int64_t k) {
  return round_up(k, kInt8StepK);
}
// Columns of a packed weight; with pairs, gates and ups of whole panels each.
constexpr int64_t int8_padded_n(int64_t n) {
  return round_up(n, kInt8PanelCols);
}
constexpr int64_t int8_packed_bytes(int64_t num_groups, int64_t n, int64_t k) {
  return num_groups * int8_padded_n(n) * int8_padded_k(k);
}

// A row of activations is one row of codes (8 bits), or two: `digits` = 2 adds, as the row behind, the codes
// of what the first has left over under a scale of 1 / 254 of its own. Their sum has an error of 1 / 65,000
// of the row's range, so that activations lose less than by rounding to bf16, at the price of a second
// product row.
//
// Quantises each row by itself. Row r of the result is source row index[r] / index_divisor, or r without an
// index; a negative index gives a row of zeros with the scale 0.
struct Int8RowsArgs {
  const void* x;         // (rows, width) dtype, row-major, adjacent rows `x_stride` elements apart
  const int32_t* index;  // (num_rows), or null
  int64_t index_divisor;
  uint8_t* codes;  // (num_rows, codes_stride) out; bytes from `width` to the stride are 128
  float* scales;   // (num_rows) out; NaN for a row with a value that is not finite, whose codes are 0
  const float*
      static_scale;  // one scale for all rows, values past its range are clipped; null: each row's own
  int64_t num_rows, width, x_stride;
  int64_t codes_stride;  // at least int8_padded_k(width)
  DType dtype;
  int64_t digits = 1;  // 1 or 2; 2 not with a static scale
};

// Order of the columns of a packed weight.
enum class Int8Columns : uint8_t {
  plain,
  // Rows 2f and 2f + 1 of the weight are gate and up of unit f: a panel holds the gates of 16 units, then
  // their ups, so that the product can apply SwiGLU to what it holds. n is even.
  gate_up,
};

// (num_groups, n, k) codes, row-major, to the packed form.
struct Int8PackArgs {
  const int8_t* codes;
  const float* scales;   // (num_groups, n), or one when `one_scale`
  int8_t* packed;        // int8_packed_bytes(...) out, aligned to 64
  float* packed_scales;  // (num_groups, padded n) out, in the order of the columns
  int32_t* offsets;      // (num_groups, padded n) out: 128 times the sum of each column's codes
  int64_t num_groups, n, k;
  bool one_scale;
  Int8Columns columns;
};

// out(R, N) = scale of row x scale of column x sum over k of a(R, k) b(N, k), per group of rows, plus bias;
// or (R, N / 2), SwiGLU of that. Rows at or past offsets[G] are not written. The integer sums are exact, so
// that results depend neither on the number of threads nor on the instruction set, but for the last bits of
// SwiGLU's exponential.
struct Int8GemmArgs {
  const uint8_t* a;       // (rows * digits, a_stride) as Int8RowsArgs leaves them
  const float* a_scales;  // (rows * digits)
  // Row r of a group is row a_index[r] / index_divisor of a. Null: row r.
  const int32_t* a_index;
  int64_t index_divisor;
  const int8_t* b;  // packed
  const float* b_scales;
  const int32_t* b_offsets;
  const float* bias;       // (num_groups, N) in the order of the weight's rows, or null; not with SwiGLU
  const int32_t* offsets;  // (G + 1) ascending; null when num_groups == 1: all rows
  void* out;
  int32_t* sums;  // null, or (R, N) out: the integer sums instead of `out`, for tests; with one digit
  int64_t num_groups, num_rows, n, k, a_stride;
  bool swiglu;  // needs Int8Columns::gate_up
  DType out_dtype;
  int64_t digits = 1;  // rows of codes per row of a
};

// Activation and quantisation of rows in one pass is Int8GemmArgs with `swiglu` and then Int8RowsArgs: the
// scale of a row needs all of it.

}  // namespace moebius::kernels
