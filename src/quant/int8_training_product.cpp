#include "quant/int8_training_product.h"

#include <utility>

#include "base/check.h"
#include "ops/linear.h"

namespace moebius::quant {

const ops::Int8TrainingWeight& Int8TrainingProduct::codes_of(const at::Tensor& weight_ENK) const {
  if (!is_current_) {
    codes_ = ops::int8_training_weight(weight_ENK, activated_, std::move(codes_));
    is_current_ = true;
  }
  return codes_;
}

at::Tensor Int8TrainingProduct::linear(const at::Tensor& x, const at::Tensor& weight_NK) const {
  return ops::linear(x, weight_NK);
}

at::Tensor Int8TrainingProduct::expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing,
                                           const ExpertWeights& experts, bool recompute) const {
  MOEBIUS_CHECK(experts.form.is_plain(), "integer products of experts with biases or a clamped activation");
  const auto* const down = dynamic_cast<const Int8TrainingProduct*>(experts.down_product);
  MOEBIUS_CHECK(down != nullptr, "experts' weights of two kinds");
  return ops::int8_training_expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF,
                                       codes_of(experts.gate_up_E2FD), down->codes_of(experts.down_EDF),
                                       routing, recompute);
}

at::Tensor Int8TrainingProduct::values(const at::Tensor& weight) const {
  return weight;
}

}  // namespace moebius::quant
