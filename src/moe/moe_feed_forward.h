// The mixture-of-experts feed-forward: routed experts and, where configured, shared ones that every token
// passes. (Shazeer et al. 2017; shared experts: Dai et al. 2024, "DeepSeekMoE")
#pragma once

#include <memory>
#include <string>

#include "config/model_config.h"
#include "moe/dispatcher.h"
#include "moe/router.h"
#include "nn/decoder.h"
#include "nn/feed_forward.h"

namespace moebius::moe {

class MoeFeedForward final : public nn::FeedForward {
 public:
  MoeFeedForward(const config::ModelConfig& config, int64_t layer, const std::string& prefix,
                 nn::ParamTable& params, std::shared_ptr<const TokenDispatcher> dispatcher,
                 const nn::TensorAxis* axis = nullptr);
  nn::FeedForwardResult forward(const at::Tensor& x_TD, const nn::FeedForwardContext& context) const override;

 private:
  ExpertWeights experts() const;
  // Within a region of the axis.
  ops::Routing route(const at::Tensor& x_TD, const nn::FeedForwardContext& context) const;
  // Of the tokens in_TD of a region, which the shared experts read as x_TD: on a grid between the regions.
  at::Tensor shared_summand(const at::Tensor& x_TD, const at::Tensor& in_TD,
                            const nn::FeedForwardContext& context) const;
  void add_losses(const ops::Routing& routing, const nn::FeedForwardContext& context,
                  nn::FeedForwardResult& result) const;

  config::MoeConfig config_;
  int64_t layer_;
  const nn::TensorAxis* axis_;  // splits the hidden units of every expert
  std::shared_ptr<const TokenDispatcher> dispatcher_;
  Router router_;
  nn::Param& gate_up_;                 // (E, 2F, D), gate and up rows interleaved
  nn::Param& down_;                    // (E, D, F)
  nn::Param* gate_up_bias_ = nullptr;  // (E, 2F)
  nn::Param* down_bias_ = nullptr;     // (E, D)
  std::unique_ptr<nn::DenseFeedForward> shared_;
  nn::Param* shared_gate_ = nullptr;  // (1, D): the shared experts' output times sigmoid(x . w) (Qwen2-MoE)
};

// A decoder whose layers are dense or routed as `config` says. Only declares its parameters. With an axis the
// caller splits the table (ParamTable::split) as it says; with pieces it has only their layers.
std::unique_ptr<nn::Decoder> make_decoder(const config::ModelConfig& config,
                                          std::shared_ptr<const TokenDispatcher> dispatcher = nullptr,
                                          std::shared_ptr<const nn::TensorAxis> axis = nullptr,
                                          std::shared_ptr<const nn::DecoderPieces> pieces = nullptr,
                                          std::shared_ptr<const nn::ContextAxis> context = nullptr);

// Whether a layer has experts.
bool is_moe_layer(const config::ModelConfig& config, int64_t layer);

}  // namespace moebius::moe
