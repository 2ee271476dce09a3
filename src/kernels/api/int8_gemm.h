// Products of int8 activations with int8 weights, summed exactly in 32 bits, scaled to floats in the same
// pass. Formats: int8_format.h. G groups of rows, each with its own weight matrix, as in grouped_gemm.h; one
// group makes it a dense product.
//
// How codes lie in memory is the device's choice (Int8Layout, KernelTable::int8_layout):
//   panels  (CPU) activations are bytes code + 128, because the processors' dot-product instructions multiply
//           unsigned with signed; the 128 is taken out again by the sum of each weight column, exactly.
//           Weights are packed once, in the order in which the product reads them: panels of kInt8PanelCols
//           columns, each [k / 4][column] [4 codes].
//   rows    (Hopper) signed bytes for both, the summed dim contiguous in both: activations (digits, rows,
//   stride),
//           weights (num_groups, padded n, padded k). Nothing is packed but for what fills up.
// Filled up with zeros (codes of 0) to whole kInt8StepK along k, and along n to whole panels or
// kInt8RowsStepN. One weight row (an output channel) has one scale.
#pragma once

#include "base/integers.h"
#include "kernels/api/int8_format.h"
#include "kernels/api/types.h"

namespace moebius::kernels {

enum class Int8Layout : uint8_t { panels, rows };

inline constexpr int64_t kInt8PanelCols = 32;
inline constexpr int64_t kInt8RowsStepN = 8;
inline constexpr int64_t kInt8StepK = 16;
// Sums of codes up to 127 x 127 fit 32 bits for every k up to this.
inline constexpr int64_t kInt8MaxK = 133'000;

constexpr int64_t int8_padded_k(int64_t k) {
  return round_up(k, kInt8StepK);
}
// Columns of a weight as the product reads it; in panels with pairs, gates and ups of whole panels each.
constexpr int64_t int8_padded_n(int64_t n, Int8Layout layout = Int8Layout::panels) {
  return round_up(n, layout == Int8Layout::panels ? kInt8PanelCols : kInt8RowsStepN);
}
constexpr int64_t int8_packed_bytes(int64_t num_groups, int64_t n, int64_t k,
                                    Int8Layout layout = Int8Layout::panels) {
  return num_groups * int8_padded_n(n, layout) * int8_padded_k(k);
}

// A row of activations is one row of codes (8 bits), or two: `digits` = 2 adds the codes of what the first
// has left over under a scale of 1 / 254 of its own. Their sum has an error of 1 / 65,000 of the row's range,
// so that activations lose less than by rounding to bf16, at the price of a second product row. The second
// row lies behind the first (panels), or `num_rows` rows behind it (rows), codes and scales alike.
//
// Quantises each row by itself. Row r of the result is source row index[r] / index_divisor, or r without an
// index; a negative index gives a row of zeros with the scale 0.
struct Int8RowsArgs {
  const void* x;         // (rows, width) dtype, row-major, adjacent rows `x_stride` elements apart
  const int32_t* index;  // (num_rows), or null
  int64_t index_divisor;
  uint8_t* codes;  // (num_rows * digits, codes_stride) out; bytes from `width` to the stride are codes of 0
  float* scales;  // (num_rows * digits) out; NaN for a row with a value that is not finite, whose codes are 0
  // One scale for all rows (host memory), values past its range are clipped; null: each row's own.
  const float* static_scale;
  int64_t num_rows, width, x_stride;
  int64_t codes_stride;  // at least int8_padded_k(width)
  DType dtype;
  int64_t digits = 1;  // 1 or 2; 2 not with a static scale
  // On a device: pointer (device memory) to the number of rows that count, or null for all; what becomes of
  // the others is anything. Ignored by the CPU, whose callers know the number.
  const int32_t* valid_rows = nullptr;
  // On a device, or null: (num_groups, width), what the values of a row of group g are multiplied with first;
  // rows are sorted by group, `offsets` (num_groups + 1).
  const float* column_scales = nullptr;
  const int32_t* offsets = nullptr;
  int64_t num_groups = 0;
  // On a device: these are activations, and the kernel that follows may begin before they are done; an
  // integer product does so and reads its weights, which must have been there before. Never for the weights
  // themselves.
  bool product_follows = false;
};

// Order of the columns of a packed weight.
enum class Int8Columns : uint8_t {
  plain,
  // Rows 2f and 2f + 1 of the weight are gate and up of unit f, and products apply SwiGLU to what they hold.
  // In panels: the gates of 16 units, then their ups; in rows: as they are. n is even.
  gate_up,
};

// (num_groups, n, k) codes, row-major, to the packed form.
struct Int8PackArgs {
  const int8_t* codes;
  const float* scales;   // (num_groups, n), or one when `one_scale`
  int8_t* packed;        // int8_packed_bytes(...) out, aligned to 64
  float* packed_scales;  // (num_groups, padded n) out, in the order of the columns
  int32_t*
      offsets;  // panels: (num_groups, padded n) out: 128 times the sum of each column's codes; rows: null
  int64_t num_groups, n, k;
  bool one_scale;
  Int8Columns columns;
};

// out(R, N) = scale of row x scale of column x sum over k of a(R, k) b(N, k), per group of rows, plus bias;
// or (R, N / 2), SwiGLU of that. Rows at or past offsets[G] are not written. The integer sums are exact, so
// that results depend neither on the number of threads nor on the instruction set, but for the last bits of
// SwiGLU's exponential (and, with SwiGLU in bf16 on a device, of gate and up, which are rounded to bf16
// first).
struct Int8GemmArgs {
  const uint8_t* a;       // as Int8RowsArgs leaves them
  const float* a_scales;  // likewise
  // Row r of a group is row a_index[r] / index_divisor of a. Null: row r. In the layout `rows` always null:
  // codes are made (Int8RowsArgs::index) or copied in the order of the groups.
  const int32_t* a_index;
  int64_t index_divisor;
  const int8_t* b;  // packed
  const float* b_scales;
  const int32_t* b_offsets;  // panels
  const float* bias;         // (num_groups, N) in the order of the weight's rows, or null; not with SwiGLU
  const int32_t* offsets;    // (G + 1) ascending; null when num_groups == 1: all rows
  void* out;
  int32_t* sums;  // null, or (R, N) out: the integer sums instead of `out`, for tests; with one digit
  int64_t num_groups, num_rows, n, k, a_stride;
  bool swiglu;  // needs Int8Columns::gate_up
  DType out_dtype;
  int64_t digits = 1;      // rows of codes per row of a
  int64_t num_a_rows = 0;  // rows: rows of a, each of `digits` codes
  // On a device, or null: the scale of row r is that of row scale_index[r] / index_divisor, for codes that
  // were copied.
  const int32_t* scale_index = nullptr;
  // With swiglu on a device: (R, N) out in bf16, what SwiGLU was applied to; or null.
  void* gate_up = nullptr;
};

// (num_groups, n, k) to (num_groups, k, n), bytes; n and k multiples of kInt8StepK. On a device: what
// training needs of weights in the layout `rows` for the product with the transposed weight
// (ops/int8_training.h).
struct Int8TransposeArgs {
  const int8_t* codes;
  int8_t* out;
  int64_t num_groups, n, k;
};

// Activation and quantisation of rows in one pass is Int8GemmArgs with `swiglu` and then Int8RowsArgs: the
// scale of a row needs all of it.

}  // namespace moebius::kernels
