#include "moe/dispatcher.h"

namespace moebius::moe {

at::Tensor LocalDispatcher::apply(const at::Tensor& x_TD, const ops::Routing& routing,
                                  const ExpertWeights& experts, bool recompute,
                                  const std::function<void()>& meanwhile) const {
  at::Tensor y_TD = quant::expert_ffn(x_TD, routing, experts, recompute);
  meanwhile();
  return y_TD;
}

}  // namespace moebius::moe
