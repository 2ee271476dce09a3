// Rows of activations as codes, and products with them: what ops/int8_linear.cpp and ops/int8_training.cpp
// share.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/api/table.h"
#include "ops/int8_linear.h"

namespace moebius::ops {

const kernels::KernelTable& int8_kernels(at::Device device);

// Rows of codes and their scales.
struct CodedRows {
  at::Tensor codes;   // uint8 (rows * digits, stride)
  at::Tensor scales;  // fp32 (rows * digits)
  int64_t digits;
  // Row r of a product is row index[r] / divisor of scales, and of codes unless those are copies in the order
  // of the rows. Undefined: row r.
  at::Tensor index_R = {};
  int64_t divisor = 1;
  bool is_copied = false;

  int64_t num_rows() const { return scales.size(0) / digits; }  // with a scale of their own
};

// Which rows are coded, and what of.
struct RowsToCode {
  at::Tensor index_R;  // row r is row index[r] / divisor of x, zeros where index[r] < 0; undefined: row r
  int64_t divisor = 1;
  int64_t most = -1;                // the first so many; -1: all
  const int32_t* in_use = nullptr;  // the first so many of these, where the number lies on the device
  at::Tensor factors_GK,
      offsets_G1;  // the values of a row of group g are multiplied by these first; may be undefined
};
CodedRows coded_rows(const at::Tensor& x_RK, Int8Activations activations, double static_scale,
                     const RowsToCode& which = {});

// Row r is row index[r] / divisor of x, each row of x rounded once where that is the faster way.
CodedRows routed_codes(const at::Tensor& x_TK, const at::Tensor& index_R, int64_t divisor,
                       Int8Activations activations);

// The arguments of a product with `a`.
kernels::Int8GemmArgs int8_product_of(const CodedRows& a, const Int8Weight& weight, const at::Tensor& out);

// One weight matrix per group. `gate_up`: (R, N) bf16 on a device, kept beside the activation; may be
// undefined.
at::Tensor int8_grouped(const CodedRows& a, const Int8Weight& weight, const at::Tensor& bias_GN,
                        const at::Tensor& offsets_G1, int64_t num_rows, at::ScalarType dtype,
                        const at::Tensor& gate_up = {});

}  // namespace moebius::ops
