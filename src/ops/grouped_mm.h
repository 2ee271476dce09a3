// Matrix products of rows sorted by group with one weight matrix per group; no autograd. On the CPU the
// project's own kernel (kernels/api/grouped_gemm.h), which reads gathered rows in place; on CUDA libtorch's
// grouped product, without host synchronisation in bf16 (in fp32 libtorch goes through the groups one by one,
// reading their sizes on the host). Rows at or past the last offset are not computed: the result holds
// anything there, so whoever reads a result must stop at the last offset.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/api/grouped_gemm.h"
#include "ops/route.h"

namespace moebius::ops {

// R rows of a tensor: as they are, or row index[r] / divisor of it.
struct RowOperand {
  at::Tensor tensor;   // (R, width), or (rows, width) with an index
  at::Tensor index_R;  // int32, or undefined
  int64_t divisor = 1;

  int64_t num_rows() const { return index_R.defined() ? index_R.size(0) : tensor.size(0); }
};

// The row of x_TD for every row of the routing. On the CPU nothing is copied; elsewhere rows are gathered
// here.
RowOperand routed_rows(const at::Tensor& x_TD, const Routing& routing);

// (R, N) = a(R, K) x w(G, N, K)^T, in a's dtype.
at::Tensor grouped_mm(const RowOperand& a_RK, const at::Tensor& w_GNK, const at::Tensor& offsets_G1);

// (R, K) = a(R, N) x w(G, N, K), in a's dtype.
at::Tensor grouped_mm_input_grad(const RowOperand& a_RN, const at::Tensor& w_GNK,
                                 const at::Tensor& offsets_G1);

// (G, N, K) = a(R, N)^T x b(R, K) per group, in a's dtype; zeros for empty groups.
at::Tensor grouped_mm_weight_grad(const RowOperand& a_RN, const RowOperand& b_RK,
                                  const at::Tensor& offsets_G1);

// The same products by libtorch's operator, on any device: what CUDA uses. Operands as in grouped_gemm.h,
// rows already gathered; contiguous result. In 2-byte types, dims that are no multiple of 8 are filled up
// with zeros, at the price of copies.
at::Tensor library_grouped_mm(kernels::GroupedGemmKind kind, const at::Tensor& a, const at::Tensor& b,
                              const at::Tensor& offsets_G1);

}  // namespace moebius::ops
