// Products of activations with int4 weights that have one scale for each group of `group` values along k, in
// integers within a group and in fp32 over the groups. Codes are -7...7, symmetric (int8_format.h with 4
// bits). Activations are rows of codes as Int8RowsArgs leaves them, one or two digits. Groups of rows with a
// weight matrix each, and the letters, are as in int8_gemm.h.
//
// Weights are packed once, in the order in which the product reads them: panels of kInt8PanelCols columns,
// each [k / 4][16 columns][4] bytes that hold code + 8 of column c in the low half and of column c + 16 in
// the high one. k is filled up to whole groups with codes of 0.
#pragma once

#include "base/integers.h"
#include "kernels/api/int8_gemm.h"
#include "kernels/api/types.h"

namespace moebius::kernels {

inline constexpr int kInt4Bits = 4;

// A group is a multiple of kInt8StepK.
constexpr int64_t int4_num_groups_k(int64_t k, int64_t group) {
  return ceil_div(k, group);
}
constexpr int64_t int4_padded_k(int64_t k, int64_t group) {
  return round_up(k, group);
}
constexpr int64_t int4_packed_bytes(int64_t num_groups, int64_t n, int64_t k, int64_t group) {
  return num_groups * int8_padded_n(n) * int4_padded_k(k, group) / 2;
}

// Codes with two of a row in a byte, as checkpoints hold them, to the packed form.
struct Int4PackArgs {
  const uint8_t* codes;  // (num_groups, n, ceil(k / 2)): code + 8 of the even k in the low half; row-major
  const float* scales;   // (num_groups, n, int4_num_groups_k)
  uint8_t* packed;       // int4_packed_bytes(...) out, aligned to 64
  float* packed_scales;  // (num_groups, panels, groups along k, kInt8PanelCols) out
  int16_t* sums;         // likewise: the sum of the codes of each group of each column
  int64_t num_groups, n, k, group;
};

// out(R, N) = sum over the groups along k of scale(N, group) x (scale of row x integer sum), plus bias. Rows
// at or past offsets[num_groups] are not written. Results do not depend on the number of threads.
struct Int4GemmArgs {
  const uint8_t* a;        // (rows * digits, a_stride) as Int8RowsArgs leaves them; bytes from k on are 128
  const float* a_scales;   // (rows * digits)
  const int32_t* a_index;  // row r is row a_index[r] / index_divisor of a; null: row r
  int64_t index_divisor;
  const uint8_t* b;  // packed
  const float* b_scales;
  const int16_t* b_sums;
  const float* bias;       // (num_groups, N), or null
  const int32_t* offsets;  // (num_groups + 1) ascending; null when num_groups == 1: all rows
  void* out;
  int64_t num_groups, num_rows, n, k, group, a_stride;  // a_stride at least int4_padded_k
  DType out_dtype;
  int64_t digits = 2;
};

// The CPU's; no other device has them. They return when the work is done, and use the shared thread team.
void int4_pack(const Int4PackArgs& args);
void int4_gemm(const Int4GemmArgs& args);

}  // namespace moebius::kernels
