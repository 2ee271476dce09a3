// Matrix products of the experts: G groups of rows, each with its own weight matrix. One group makes it a
// plain dense product. Accumulation in fp32 whatever the dtype. Rows at or past offsets[G] are left unwritten
// in the outputs that have rows. On the CPU bf16 uses the processor's dot-product instruction where it has
// one; on the GPU these are Hopper's kernels (kernels/cuda/grouped_gemm.cu), and what they do not serve goes
// to libtorch's grouped operator.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

enum class GroupedGemmKind : uint8_t {
  forward,      // out(R, N)    = a(R, K)    x b(G, N, K)^T   per group of rows
  input_grad,   // out(R, K)    = a(R, N)    x b(G, N, K)
  weight_grad,  // out(G, N, K) = a(R, N)^T  x b(R, K)        per group of rows; empty groups give zeros (or
                // keep what is there when accumulating)
};

struct GroupedGemmArgs {
  GroupedGemmKind kind;
  const void* a;
  const void* b;
  void* out;
  const int32_t* offsets;  // (G + 1) ascending; null when num_groups == 1: all rows
  int64_t num_groups;      // G
  int64_t num_rows;        // R
  int64_t n;               // N
  int64_t k;               // K
  // Gathered operands: row r of the operand is row (index[r] / index_divisor) of the tensor given. Null: row
  // r.
  const int32_t* a_index;  // (R)
  const int32_t* b_index;  // (R), weight_grad only
  int64_t index_divisor;   // experts per token; 1 when the index holds row numbers
  bool accumulate;         // add to out instead of overwriting it
  DType dtype;             // of a, b
  DType out_dtype;         // of out
  // forward on the GPU: (R, N / 2) out, the activation of kernels/api/swiglu.h of the result as rounded to
  // bf16; out may then be null (not kept). Null: no activation.
  void* act;
  // 0: the device chooses the kernel; v > 0: number v - 1 of KernelTable::grouped_gemm_variants for this
  // product.
  int32_t variant;
};

}  // namespace moebius::kernels
