// Shapes: T tokens, D model width, F expert width, E experts. With a tensor axis F is this process's share of
// the hidden units: each rank routes all tokens alike, computes a summand of the output of every expert, and
// the sum over the ranks is taken once, behind the weighted sum and the shared experts. On a grid of ranks
// that is so on each line, for its tokens; the dispatcher takes them to experts on other lines, and the
// shared experts are products of blocks by themselves.
#include "moe/moe_feed_forward.h"

#include <ATen/ops/sigmoid.h>

#include <algorithm>

#include "moe/routing_of_lines.h"
#include "moe/segment_counts.h"
#include "ops/linear.h"

namespace moebius::moe {
namespace {

// Those of all lines of a grid.
int64_t num_tokens_of(const nn::TensorAxis* axis, const at::Tensor& in_TD,
                      const nn::FeedForwardContext& context) {
  return nn::in_blocks(axis) ? context.num_tokens : in_TD.size(0);
}

}  // namespace

bool is_moe_layer(const config::ModelConfig& config, int64_t layer) {
  const auto& dense = config.moe.dense_layers;
  return config.moe.experts > 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
}

MoeFeedForward::MoeFeedForward(const config::ModelConfig& config, int64_t layer, const std::string& prefix,
                               nn::ParamTable& params, std::shared_ptr<const TokenDispatcher> dispatcher,
                               const nn::TensorAxis* axis)
    : config_(config.moe),
      layer_(layer),
      axis_(axis),
      dispatcher_(std::move(dispatcher)),
      router_(config, prefix, params),
      gate_up_(params.declare({.name = prefix + "gate_up",
                               .dims = {config.moe.experts, 2 * config.moe.expert_dim, config.dim},
                               .klass = nn::ParamClass::expert,
                               .sharding = {.ep = 0, .tp = 1},
                               .init = nn::Init::normal(config.init_std),
                               .is_product = true})),
      down_(params.declare({.name = prefix + "down",
                            .dims = {config.moe.experts, config.dim, config.moe.expert_dim},
                            .klass = nn::ParamClass::expert,
                            .sharding = {.ep = 0, .tp = 2},
                            .init = nn::Init::normal(config.init_std * config.output_init_scale),
                            .is_product = true})) {
  if (config.moe.expert_bias) {
    const auto bias = [&](const char* name, int64_t width, nn::AxisMap sharding) {
      return &params.declare({.name = prefix + name,
                              .dims = {config.moe.experts, width},
                              .klass = nn::ParamClass::expert,
                              .sharding = sharding,
                              .init = nn::Init::zeros(),
                              .decays = false});
    };
    gate_up_bias_ = bias("gate_up_bias", 2 * config.moe.expert_dim, {.ep = 0, .tp = 1});
    down_bias_ = bias("down_bias", config.dim, {.ep = 0});
  }
  if (config.moe.shared_experts == 0) return;
  shared_ = std::make_unique<nn::DenseFeedForward>(
      nn::DenseOptions{.dim = config.dim,
                       .hidden = config.moe.shared_width(),
                       .init_std = config.init_std,
                       .out_std = config.init_std * config.output_init_scale,
                       .axis = axis},
      prefix + "shared.", params);
  if (config.moe.shared_gate)
    shared_gate_ = &params.declare(
        {.name = prefix + "shared_gate", .dims = {1, config.dim}, .init = nn::Init::normal(config.init_std)});
}

ExpertWeights MoeFeedForward::experts() const {
  ExpertWeights experts;
  experts.gate_up_E2FD = gate_up_.value;
  experts.down_EDF = down_.value;
  experts.form.gate_up_bias_E2F = nn::value_of(gate_up_bias_);
  experts.form.down_bias_ED = nn::shared(axis_, nn::value_of(down_bias_));
  // One rank adds it to the sum.
  if (down_bias_ != nullptr && nn::place_of(axis_).rank > 0)
    experts.form.down_bias_ED = experts.form.down_bias_ED * 0;
  experts.form.clamped = config_.activation == "clamped_swiglu";
  experts.form.alpha = config_.activation_alpha;
  experts.form.limit = config_.activation_limit;
  experts.gate_up_product = gate_up_.product.get();
  experts.down_product = down_.product.get();
  return experts;
}

at::Tensor MoeFeedForward::shared_summand(const at::Tensor& x_TD, const at::Tensor& in_TD,
                                          const nn::FeedForwardContext& context) const {
  const at::Tensor y_TD = shared_->summand(x_TD, context.discards);
  if (shared_gate_ == nullptr) return y_TD;
  const at::Tensor gate_T1 =
      at::sigmoid(ops::linear(nn::alike(axis_, in_TD), nn::of_lines(axis_, shared_gate_->value)));
  return y_TD * nn::shared(axis_, gate_T1);
}

void MoeFeedForward::add_losses(const ops::Routing& routing, const nn::FeedForwardContext& context,
                                nn::FeedForwardResult& result) const {
  const config::BalanceConfig& balance = config_.balance;
  const nn::LoadSum* const sum = balance.aux_scope == "sequence" ? context.sequence_sum : context.load_sum;
  if (balance.aux_loss > 0 && (balance.aux_scope == "model" || sum != nullptr)) {
    // It takes other layers, or other processes: nn::Decoder has it.
    result.prob_sum_SE = routing.prob_sum_SE;
    result.counts_SE = counts_by_segment(routing, context.sequence_of_T);
  } else if (balance.aux_loss > 0) {
    result.balance_loss = routing.aux_loss * balance.aux_loss;
  }
  if (balance.z_loss > 0) {
    const at::Tensor z = routing.z_loss * balance.z_loss;
    result.balance_loss = result.balance_loss.defined() ? result.balance_loss + z : z;
  }
}

ops::Routing MoeFeedForward::route(const at::Tensor& x_TD, const nn::FeedForwardContext& context) const {
  at::Tensor logits_TE;
  const at::Tensor sequence_of_T = nn::rows_of_line(axis_, context.sequence_of_T);
  ops::Routing routing = router_.route(nn::alike(axis_, x_TD), sequence_of_T, context.num_sequences,
                                       context.may_drop, &logits_TE, axis_);
  const at::Tensor own_offsets_E1 = routing.offsets_E1;
  add_lines(axis_, context.num_tokens, sequence_of_T,
            router_.is_per_sequence(sequence_of_T) ? context.num_sequences : 1, routing);
  if (context.observer != nullptr) {
    context.observer->observe(layer_, routing.counts_E, routing.entropy, routing.offsets_E1,
                              num_tokens_of(axis_, x_TD, context) * config_.top_k);
    context.observer->decided(layer_, logits_TE, routing.experts_TK, routing.weights_TK);
  }
  routing.offsets_E1 = own_offsets_E1;
  routing.weights_TK = nn::shared(axis_, routing.weights_TK);
  return routing;
}

nn::FeedForwardResult MoeFeedForward::forward(const at::Tensor& x_TD,
                                              const nn::FeedForwardContext& context) const {
  const bool in_blocks = nn::in_blocks(axis_);
  const at::Tensor in_TD = nn::enter(axis_, x_TD, context.num_tokens, context.discards);
  const ops::Routing routing = route(in_TD, context);
  nn::FeedForwardResult result;
  at::Tensor shared_TD;
  result.y_TD = dispatcher_->apply(in_TD, routing, experts(), context.discards != nullptr, [&] {
    if (shared_) shared_TD = shared_summand(in_blocks ? x_TD : in_TD, in_TD, context);
  });
  if (shared_TD.defined() && !in_blocks) result.y_TD = result.y_TD + shared_TD;
  result.y_TD = nn::leave(axis_, result.y_TD);
  if (shared_TD.defined() && in_blocks) result.y_TD = result.y_TD + shared_TD;
  if (context.with_losses) add_losses(routing, context, result);
  return result;
}

std::unique_ptr<nn::Decoder> make_decoder(const config::ModelConfig& config,
                                          std::shared_ptr<const TokenDispatcher> dispatcher,
                                          std::shared_ptr<const nn::TensorAxis> axis,
                                          std::shared_ptr<const nn::DecoderPieces> pieces,
                                          std::shared_ptr<const nn::ContextAxis> context) {
  if (!dispatcher) dispatcher = std::make_shared<LocalDispatcher>();
  return std::make_unique<nn::Decoder>(
      config,
      [&](int64_t layer, const std::string& prefix,
          nn::ParamTable& params) -> std::unique_ptr<nn::FeedForward> {
        if (is_moe_layer(config, layer))
          return std::make_unique<MoeFeedForward>(config, layer, prefix + "moe.", params, dispatcher,
                                                  axis.get());
        return std::make_unique<nn::DenseFeedForward>(
            nn::DenseOptions{.dim = config.dim,
                             .hidden = config.ffn_dim,
                             .init_std = config.init_std,
                             .out_std = config.init_std * config.output_init_scale,
                             .bias = config.ffn_bias,
                             .axis = axis.get()},
            prefix + "ffn.", params);
      },
      axis, std::move(pieces), std::move(context));
}

}  // namespace moebius::moe
