// Matrix products of rows sorted by group with one weight matrix per group; no autograd. By the project's own
// kernels (kernels/api/grouped_gemm.h) on the CPU and, in bf16, on Hopper GPUs; elsewhere on CUDA by
// libtorch's grouped product (in fp32 it goes through the groups one by one, reading their sizes on the host;
// the others never do). Rows at or past the last offset are not computed: the result holds anything there, so
// whoever reads a result must stop at the last offset.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/api/grouped_gemm.h"
#include "ops/route.h"

namespace moebius::ops {

// A Routing of what a backward pass kept of one; experts_TK may be undefined.
inline Routing kept_routing(const at::Tensor& weights_TK, const at::Tensor& experts_TK,
                            const at::Tensor& order_R, const at::Tensor& inverse_R,
                            const at::Tensor& offsets_E1) {
  Routing routing;
  routing.weights_TK = weights_TK;
  routing.experts_TK = experts_TK;
  routing.order_R = order_R;
  routing.inverse_R = inverse_R;
  routing.offsets_E1 = offsets_E1;
  return routing;
}

// R rows of a tensor: as they are, or row index[r] / divisor of it.
struct RowOperand {
  at::Tensor tensor;   // (R, width), or (rows, width) with an index
  at::Tensor index_R;  // int32, or undefined
  int64_t divisor = 1;

  int64_t num_rows() const { return index_R.defined() ? index_R.size(0) : tensor.size(0); }
};

// The row of x_TD for every row of the routing, in place: a product reads it from there, or copies it where
// its kernel cannot.
RowOperand routed_rows(const at::Tensor& x_TD, const Routing& routing);

// The same for a product with `width` columns: copied first where that is the faster way on this device. A
// product that gathers saves writing and reading the copy and runs slower, more so where the rows are summed
// over (`summed`, weight gradients). By the table of measured products (ops/product_table.h) where it knows
// the product, else by thresholds measured on an H200: docs/benchmarks/gpu-kernel-notes.md.
RowOperand routed_rows_for(const at::Tensor& x_TD, const Routing& routing, int64_t width, bool summed);

// (R, N) = a(R, K) x w(G, N, K)^T, in a's dtype.
at::Tensor grouped_mm(const RowOperand& a_RK, const at::Tensor& w_GNK, const at::Tensor& offsets_G1);

// grouped_mm and the activation of its result (expert_rows.h); `product` is undefined unless kept.
struct ActivatedProduct {
  at::Tensor product_RN;  // N: pairs of gate and up
  at::Tensor act;         // (R, N / 2)
};
ActivatedProduct grouped_mm_swiglu(const RowOperand& a_RK, const at::Tensor& w_GNK, const Routing& routing,
                                   bool keep);

// (R, K) = a(R, N) x w(G, N, K), in a's dtype.
at::Tensor grouped_mm_input_grad(const RowOperand& a_RN, const at::Tensor& w_GNK,
                                 const at::Tensor& offsets_G1);

// (G, N, K) = a(R, N)^T x b(R, K) per group, in a's dtype; zeros for empty groups.
at::Tensor grouped_mm_weight_grad(const RowOperand& a_RN, const RowOperand& b_RK,
                                  const at::Tensor& offsets_G1);

// The same products by libtorch's operator, on any device. Operands as in grouped_gemm.h,
// rows already gathered; contiguous result. In 2-byte types, dims that are no multiple of 8 are filled up
// with zeros, at the price of copies.
at::Tensor library_grouped_mm(kernels::GroupedGemmKind kind, const at::Tensor& a, const at::Tensor& b,
                              const at::Tensor& offsets_G1);

}  // namespace moebius::ops
