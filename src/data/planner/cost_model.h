// What a document costs in a training step.
#pragma once

#include <cstdint>

#include "config/model_config.h"

namespace moebius::data {

// FLOPs of the forward pass (the backward pass is twice that, whatever the lengths). A document of L tokens
// costs L * (linear_flops + expert_flops) + L^2 * attention_flops: its tokens see half of L others on
// average.
struct CostModel {
  double linear_flops = 0;     // per token: projections, dense feed-forward, output layer
  double expert_flops = 0;     // per token: router and the experts that it visits
  double attention_flops = 0;  // per token and token: scores and weighted sum, causal half counted once

  double of(int64_t length) const {
    const auto l = static_cast<double>(length);
    return l * (linear_flops + expert_flops + l * attention_flops);
  }
  // The longest document that costs at most `cost`.
  int64_t longest(double cost) const;
};

// A dense decoder of width h: 24 h^2 FLOPs per token and layer in the products (Narayanan et al. 2021,
// arXiv 2104.04473, eq. 2) and 2 h per pair of tokens in causal attention, so a document costs
// 24 h^2 L (1 + L / (12 h)) per layer.
CostModel cost_of_width(int64_t hidden);

// The model of a run: grouped-query attention, gated feed-forward, routed and shared experts.
CostModel cost_of_model(const config::ModelConfig& model);

}  // namespace moebius::data
