#include "moe/dispatcher.h"

#include "ops/experts.h"

namespace moebius::moe {

at::Tensor LocalDispatcher::apply(const at::Tensor& x_TD, const ops::Routing& routing,
                                  const ExpertWeights& experts, bool recompute) const {
  if (!experts.form.is_plain())
    return ops::biased_expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF, routing, experts.form,
                                  recompute);
  return ops::expert_ffn(x_TD, experts.gate_up_E2FD, experts.down_EDF, routing, recompute);
}

}  // namespace moebius::moe
