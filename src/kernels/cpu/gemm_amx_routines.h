// The inner routines of gemm_amx.cpp. A word is a pair of bf16 values that follow each other along k, the
// first in the low half; blocks are of 16 x 16 words.
#pragma once

#include <cstdint>

namespace moebius::kernels::cpu {

// dst[w * stride + r] = word w of rows[r] from element `offset` on. Rows >= num_rows and elements >=
// num_elements (counted from the start of the row) are zero.
struct TransposeArgs {
  const uint16_t* const* rows;
  int64_t num_rows;
  int64_t offset, num_elements;
  uint32_t* dst;
  int64_t stride;
};

// Word (w, j) is made of column `col + j` of rows[2w] and rows[2w + 1]; rows >= num_rows (may be negative)
// and columns >= num_cols are zero. join: dst[w * stride + j]; join_transpose: dst[j * stride + w].
struct JoinArgs {
  const uint16_t* const* rows;
  int64_t num_rows;
  int64_t col, num_cols;
  uint32_t* dst;
  int64_t stride;
};

// c(32, 32) fp32 (+)= a(32 rows, num_words) x b(num_words, 32), num_words a multiple of 16. Without two_rows
// (two_cols) only the first 16 rows (columns) are wanted.
struct MultiplyArgs {
  const uint32_t* a;
  int64_t a_stride;
  const uint32_t* b;
  int64_t num_words;
  float* c;
  bool add, two_rows, two_cols;
};

// The first rows x cols of c(32, 32) to out, as fp32 or rounded to bf16, added to what is there when asked
// for.
struct StoreArgs {
  const float* c;
  int64_t rows, cols;
  void* out;
  int64_t out_stride;
  bool is_f32, add;
};

struct AmxRoutines {
  void (*begin)();  // before the products of a block
  void (*end)();
  void (*transpose)(const TransposeArgs&);
  void (*join)(const JoinArgs&);
  void (*join_transpose)(const JoinArgs&);
  void (*multiply)(const MultiplyArgs&);
  void (*store)(const StoreArgs&);
};

const AmxRoutines& portable_amx_routines();

// Null when the processor has no AMX for bf16 or the system does not grant its use.
const AmxRoutines* hardware_amx_routines();

}  // namespace moebius::kernels::cpu
