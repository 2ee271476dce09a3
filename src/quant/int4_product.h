// A weight that is held in int4 alone, with a scale for each group of its inputs, and multiplied by
// activations of 16 bits: for evaluation and generation.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "ops/int4_linear.h"
#include "quant/product.h"

namespace moebius::quant {

// Codes and scales of a weight as checkpoints hold them (ops/int4_linear.h).
struct Int4Codes {
  at::Tensor codes;   // uint8 (..., N, ceil(K / 2))
  at::Tensor scales;  // fp32 (..., N, groups)
};

// Of rows (N, K), fp32 or bf16: the range of each group is the one of 28 parts of its largest magnitude whose
// rounding to 4 bits has the least mean square error. Not finite where a value is not.
Int4Codes int4_codes(const at::Tensor& rows_NK, int64_t group);

class Int4Product final : public Product {
 public:
  // codes (N, ceil(K / 2)), or (E, N, ceil(K / 2)) of experts. `dtype`: of the model.
  Int4Product(const Int4Codes& codes, int64_t k, int64_t group, at::ScalarType dtype);

  // No autograd.
  at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) const override;
  at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                        bool recompute) const override;
  at::Tensor values(const at::Tensor& weight) const override;

  int64_t num_bytes() const override;

 private:
  ops::Int4Weight weight_;
  at::ScalarType dtype_;
};

}  // namespace moebius::quant
