// The weight of routed experts whose products are computed with integers while training
// (ops/int8_training.h). The float value stays the parameter; its codes are made again when it has changed.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/int8_training.h"
#include "quant/product.h"

namespace moebius::quant {

class Int8TrainingProduct final : public Product {
 public:
  // `activated`: its rows are gates and ups.
  explicit Int8TrainingProduct(bool activated) : activated_(activated) {}

  // The parameter's value is another than at the last use.
  void weight_changed() { is_current_ = false; }

  at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK) const override;
  at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                        bool recompute) const override;
  at::Tensor values(const at::Tensor& weight) const override;

 private:
  const ops::Int8TrainingWeight& codes_of(const at::Tensor& weight_ENK) const;

  bool activated_;
  mutable bool is_current_ = false;
  mutable ops::Int8TrainingWeight codes_;
};

}  // namespace moebius::quant
