// Shapes: T tokens, D model width, F expert width, E experts.
#include "moe/moe_feed_forward.h"

#include <ATen/ops/sigmoid.h>

#include <algorithm>

#include "ops/linear.h"

namespace moebius::moe {

bool is_moe_layer(const config::ModelConfig& config, int64_t layer) {
  const auto& dense = config.moe.dense_layers;
  return config.moe.experts > 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
}

MoeFeedForward::MoeFeedForward(const config::ModelConfig& config, int64_t layer, const std::string& prefix,
                               nn::ParamTable& params, std::shared_ptr<const TokenDispatcher> dispatcher)
    : config_(config.moe),
      layer_(layer),
      dispatcher_(std::move(dispatcher)),
      router_(config, prefix, params),
      gate_up_(params.declare({.name = prefix + "gate_up",
                               .dims = {config.moe.experts, 2 * config.moe.expert_dim, config.dim},
                               .klass = nn::ParamClass::expert,
                               .sharding = {.ep = 0, .tp = 1},
                               .init = nn::Init::normal(config.init_std)})),
      down_(params.declare({.name = prefix + "down",
                            .dims = {config.moe.experts, config.dim, config.moe.expert_dim},
                            .klass = nn::ParamClass::expert,
                            .sharding = {.ep = 0, .tp = 2},
                            .init = nn::Init::normal(config.init_std * config.output_init_scale)})) {
  if (config.moe.expert_bias) {
    const auto bias = [&](const char* name, int64_t width) {
      return &params.declare({.name = prefix + name,
                              .dims = {config.moe.experts, width},
                              .klass = nn::ParamClass::expert,
                              .sharding = {.ep = 0},
                              .init = nn::Init::zeros(),
                              .decays = false});
    };
    gate_up_bias_ = bias("gate_up_bias", 2 * config.moe.expert_dim);
    down_bias_ = bias("down_bias", config.dim);
  }
  if (config.moe.shared_experts == 0) return;
  shared_ = std::make_unique<nn::DenseFeedForward>(config.dim, config.moe.shared_width(), config.init_std,
                                                   config.init_std * config.output_init_scale,
                                                   prefix + "shared.", params);
  if (config.moe.shared_gate)
    shared_gate_ = &params.declare(
        {.name = prefix + "shared_gate", .dims = {1, config.dim}, .init = nn::Init::normal(config.init_std)});
}

ExpertWeights MoeFeedForward::experts() const {
  ExpertWeights experts{gate_up_.value, down_.value};
  experts.form.gate_up_bias_E2F = nn::value_of(gate_up_bias_);
  experts.form.down_bias_ED = nn::value_of(down_bias_);
  experts.form.clamped = config_.activation == "clamped_swiglu";
  experts.form.alpha = config_.activation_alpha;
  experts.form.limit = config_.activation_limit;
  return experts;
}

at::Tensor MoeFeedForward::shared(const at::Tensor& x_TD, const nn::FeedForwardContext& context) const {
  const at::Tensor y_TD = shared_->forward(x_TD, context).y_TD;
  if (shared_gate_ == nullptr) return y_TD;
  return y_TD * at::sigmoid(ops::linear(x_TD, shared_gate_->value));
}

void MoeFeedForward::add_losses(const ops::Routing& routing, nn::FeedForwardResult& result) const {
  const config::BalanceConfig& balance = config_.balance;
  if (balance.aux_loss > 0 && balance.aux_scope == "model") {
    result.prob_sum_E = routing.prob_sum_SE.sum(0);
    result.counts_E = routing.counts_E;
  } else if (balance.aux_loss > 0) {
    result.balance_loss = routing.aux_loss * balance.aux_loss;
  }
  if (balance.z_loss > 0) {
    const at::Tensor z = routing.z_loss * balance.z_loss;
    result.balance_loss = result.balance_loss.defined() ? result.balance_loss + z : z;
  }
}

nn::FeedForwardResult MoeFeedForward::forward(const at::Tensor& x_TD,
                                              const nn::FeedForwardContext& context) const {
  at::Tensor logits_TE;
  const ops::Routing routing =
      router_.route(x_TD, context.sequence_of_T, context.num_sequences, context.may_drop, &logits_TE);
  if (context.observer != nullptr) {
    context.observer->observe(layer_, routing.counts_E, routing.entropy, routing.offsets_E1,
                              routing.experts_TK.numel());
    context.observer->decided(layer_, logits_TE, routing.experts_TK, routing.weights_TK);
  }
  nn::FeedForwardResult result;
  result.y_TD = dispatcher_->apply(x_TD, routing, experts(), context.discards != nullptr);
  if (shared_) result.y_TD = result.y_TD + shared(x_TD, context);
  if (context.with_losses) add_losses(routing, result);
  return result;
}

std::unique_ptr<nn::Decoder> make_decoder(const config::ModelConfig& config,
                                          std::shared_ptr<const TokenDispatcher> dispatcher) {
  if (!dispatcher) dispatcher = std::make_shared<LocalDispatcher>();
  return std::make_unique<nn::Decoder>(
      config,
      [&](int64_t layer, const std::string& prefix,
          nn::ParamTable& params) -> std::unique_ptr<nn::FeedForward> {
        if (is_moe_layer(config, layer))
          return std::make_unique<MoeFeedForward>(config, layer, prefix + "moe.", params, dispatcher);
        return std::make_unique<nn::DenseFeedForward>(config.dim, config.ffn_dim, config.init_std,
                                                      config.init_std * config.output_init_scale,
                                                      prefix + "ffn.", params, config.ffn_bias);
      });
}

}  // namespace moebius::moe
