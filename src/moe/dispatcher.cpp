#include "moe/dispatcher.h"

#include "ops/experts.h"

namespace moebius::moe {

at::Tensor LocalDispatcher::apply(const at::Tensor& x_TD, const ops::Routing& routing,
                                  const ExpertWeights& experts, bool recompute,
                                  const std::function<void()>& meanwhile) const {
  at::Tensor y_TD = experts.form.is_plain()
                        ? ops::expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF, routing, recompute)
                        : ops::biased_expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF, routing,
                                                 experts.form, recompute);
  meanwhile();
  return y_TD;
}

}  // namespace moebius::moe
