// Shapes: T tokens, D model width, F hidden width.
#include "nn/feed_forward.h"

#include "ops/linear.h"
#include "ops/swiglu.h"

namespace moebius::nn {

DenseFeedForward::DenseFeedForward(int64_t dim, int64_t hidden, double init_std, double out_std,
                                   const std::string& prefix, ParamTable& params, bool bias)
    : gate_up_(params.declare({.name = prefix + "gate_up",
                               .dims = {2 * hidden, dim},
                               .klass = ParamClass::dense,
                               .sharding = {.tp = 0},
                               .init = Init::normal(init_std)})),
      down_(params.declare({.name = prefix + "down",
                            .dims = {dim, hidden},
                            .klass = ParamClass::dense,
                            .sharding = {.tp = 1},
                            .init = Init::normal(out_std)})) {
  if (!bias) return;
  const auto declare = [&](const char* name, int64_t size) {
    return &params.declare({.name = prefix + name, .dims = {size}, .init = Init::zeros(), .decays = false});
  };
  gate_up_bias_ = declare("gate_up_bias", 2 * hidden);
  down_bias_ = declare("down_bias", dim);
}

FeedForwardResult DenseFeedForward::forward(const at::Tensor& x_TD, const FeedForwardContext& context) const {
  const auto up = [this](const at::Tensor& x) {
    return ops::linear(x, gate_up_.value, value_of(gate_up_bias_));
  };
  const at::Tensor gate_up_T2F = up(x_TD), activation_TF = ops::swiglu(gate_up_T2F);
  if (context.discards != nullptr) {
    context.discards->add(gate_up_T2F, [up, x = x_TD.detach()] { return up(x); });
    context.discards->add(activation_TF, [gate_up = gate_up_T2F.detach()] { return ops::swiglu(gate_up); });
  }
  return {ops::linear(activation_TF, down_.value, value_of(down_bias_)), {}, {}, {}};
}

}  // namespace moebius::nn
