#include "data/planner/cost_model.h"

#include <cmath>

namespace moebius::data {

int64_t CostModel::longest(double cost) const {
  const double per_token = linear_flops + expert_flops;
  if (cost < per_token + attention_flops) return 0;
  // The positive root of attention L^2 + per_token L - cost, in the form that loses no digits.
  const double root = std::sqrt(per_token * per_token + 4 * attention_flops * cost);
  auto length = static_cast<int64_t>(2 * cost / (per_token + root));
  while (of(length) > cost) --length;
  while (of(length + 1) <= cost) ++length;
  return length;
}

CostModel cost_of_width(int64_t hidden) {
  const auto h = static_cast<double>(hidden);
  return {24 * h * h, 0, 2 * h};
}

CostModel cost_of_model(const config::ModelConfig& model) {
  const auto dim = static_cast<double>(model.dim);
  const auto head_dim = static_cast<double>(model.head_dim == 0 ? model.dim / model.heads : model.head_dim);
  const double query_width = static_cast<double>(model.heads) * head_dim;
  const double key_width = static_cast<double>(model.kv_heads) * head_dim;
  const auto layers = static_cast<double>(model.layers);
  const double dense_layers =
      model.moe.experts == 0 ? layers : static_cast<double>(model.moe.dense_layers.size());
  CostModel cost;
  cost.linear_flops = layers * 2 * dim * (2 * query_width + 2 * key_width) +
                      dense_layers * 6 * dim * static_cast<double>(model.ffn_dim) +
                      2 * dim * static_cast<double>(model.vocab);
  const auto experts_seen = static_cast<double>(model.moe.top_k + model.moe.shared_experts);
  cost.expert_flops =
      (layers - dense_layers) * (6 * dim * static_cast<double>(model.moe.expert_dim) * experts_seen +
                                 2 * dim * static_cast<double>(model.moe.experts));
  cost.attention_flops = layers * 2 * query_width;
  return cost;
}

}  // namespace moebius::data
