#include "quant/product.h"

#include "base/check.h"
#include "ops/experts.h"
#include "ops/linear.h"

namespace moebius::quant {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight_NK, const at::Tensor& bias_N,
                  const Product* product) {
  if (product == nullptr) return ops::linear(x, weight_NK, bias_N);
  const at::Tensor y = product->linear(x, weight_NK);
  return bias_N.defined() ? y + bias_N : y;
}

at::Tensor expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing, const ExpertWeights& experts,
                      bool recompute) {
  MOEBIUS_CHECK_EQ(experts.gate_up_product == nullptr, experts.down_product == nullptr);
  if (experts.gate_up_product != nullptr)
    return experts.gate_up_product->expert_ffn(x_TD, routing, experts, recompute);
  if (!experts.form.is_plain())
    return ops::biased_expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF, routing, experts.form,
                                  recompute);
  return ops::expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF, routing, recompute);
}

}  // namespace moebius::quant
