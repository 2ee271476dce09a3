// Shapes: T tokens, D model width, F hidden width.
#include "nn/feed_forward.h"

#include "base/check.h"
#include "nn/linear.h"
#include "ops/swiglu.h"

namespace moebius::nn {

DenseFeedForward::DenseFeedForward(const DenseOptions& options, const std::string& prefix, ParamTable& params)
    : axis_(options.axis),
      gate_up_(params.declare({.name = prefix + "gate_up",
                               .dims = {2 * options.hidden, options.dim},
                               .klass = ParamClass::dense,
                               .sharding = {.tp = 0, .grid = 1},
                               .init = Init::normal(options.init_std),
                               .is_product = true})),
      down_(params.declare({.name = prefix + "down",
                            .dims = {options.dim, options.hidden},
                            .klass = ParamClass::dense,
                            .sharding = {.tp = 1, .grid = 0},
                            .init = Init::normal(options.out_std),
                            .is_product = true})) {
  MOEBIUS_CHECK(options.hidden % place_of(axis_).size == 0, options.hidden, " hidden units over ",
                place_of(axis_).size, " ranks");
  if (!options.bias) return;
  const auto declare = [&](const char* name, int64_t size, AxisMap sharding) {
    return &params.declare({.name = prefix + name,
                            .dims = {size},
                            .sharding = sharding,
                            .init = Init::zeros(),
                            .decays = false});
  };
  gate_up_bias_ = declare("gate_up_bias", 2 * options.hidden, {.tp = 0});
  down_bias_ = declare("down_bias", options.dim, {.stream = 0});
}

at::Tensor DenseFeedForward::summand(const at::Tensor& x_TD, Discards* discards) const {
  const auto up = [this](const at::Tensor& x) { return first_linear(axis_, x, gate_up_, gate_up_bias_); };
  const at::Tensor gate_up_T2F = up(x_TD), activation_TF = ops::swiglu(gate_up_T2F);
  if (discards != nullptr) {
    discards->add(gate_up_T2F, [up, x = x_TD.detach()] { return up(x); });
    discards->add(activation_TF, [gate_up = gate_up_T2F.detach()] { return ops::swiglu(gate_up); });
  }
  return second_linear(axis_, activation_TF, down_);
}

FeedForwardResult DenseFeedForward::forward(const at::Tensor& x_TD, const FeedForwardContext& context) const {
  const at::Tensor in_TD = enter_pair(axis_, x_TD, context.num_tokens, context.discards);
  const at::Tensor y_TD = leave_pair(axis_, summand(in_TD, context.discards));
  return {down_bias_ == nullptr ? y_TD : y_TD + outside(axis_, down_bias_->value), {}, {}, {}};
}

}  // namespace moebius::nn
