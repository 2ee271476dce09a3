// Shapes: T tokens, D model width, F expert width, E experts.
#include "moe/moe_feed_forward.h"

#include <algorithm>

namespace moebius::moe {

bool is_moe_layer(const config::ModelConfig& config, int64_t layer) {
  const auto& dense = config.moe.dense_layers;
  return config.moe.experts > 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
}

MoeFeedForward::MoeFeedForward(const config::ModelConfig& config, int64_t layer, const std::string& prefix,
                               nn::ParamTable& params, std::shared_ptr<const TokenDispatcher> dispatcher)
    : balance_(config.moe.balance),
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
  if (config.moe.shared_experts > 0)
    shared_ = std::make_unique<nn::DenseFeedForward>(
        config.dim, config.moe.shared_experts * config.moe.expert_dim, config.init_std,
        config.init_std * config.output_init_scale, prefix + "shared.", params);
}

nn::FeedForwardResult MoeFeedForward::forward(const at::Tensor& x_TD,
                                              const nn::FeedForwardContext& context) const {
  const ops::Routing routing =
      router_.route(x_TD, context.sequence_of_T, context.num_sequences, context.may_drop);
  if (context.observer != nullptr)
    context.observer->observe(layer_, routing.counts_E, routing.entropy, routing.offsets_E1,
                              routing.experts_TK.numel());
  nn::FeedForwardResult result;
  result.y_TD = dispatcher_->apply(x_TD, routing, {gate_up_.value, down_.value}, context.recompute);
  if (shared_) result.y_TD = result.y_TD + shared_->forward(x_TD, context).y_TD;
  if (context.with_losses) {
    if (balance_.aux_loss > 0) result.balance_loss = routing.aux_loss * balance_.aux_loss;
    if (balance_.z_loss > 0) {
      const at::Tensor z = routing.z_loss * balance_.z_loss;
      result.balance_loss = result.balance_loss.defined() ? result.balance_loss + z : z;
    }
  }
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
                                                      prefix + "ffn.", params);
      });
}

}  // namespace moebius::moe
