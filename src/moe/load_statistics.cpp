// Shapes: L layers with experts, E experts.
#include "moe/load_statistics.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/concat.h"
#include "moe/moe_feed_forward.h"

namespace moebius::moe {

LoadStatistics::LoadStatistics(const config::ModelConfig& config, at::Device device)
    : num_experts_(config.moe.experts) {
  // The block of multi-token prediction stands behind the model's.
  for (int64_t layer = 0; layer < config.layers + config.mtp.depth; ++layer)
    if (is_moe_layer(config, layer)) layers_.push_back(layer);
  packed_ = at::zeros({static_cast<int64_t>(layers_.size()), num_experts_ + 2},
                      at::TensorOptions().dtype(at::kFloat).device(device));
}

void LoadStatistics::observe(int64_t layer, const at::Tensor& counts_E, const at::Tensor& entropy,
                             const at::Tensor& offsets_E1, int64_t num_slots) {
  const at::NoGradGuard no_grad;
  const auto at = std::lower_bound(layers_.begin(), layers_.end(), layer);
  MOEBIUS_CHECK(at != layers_.end() && *at == layer, "layer ", layer, " has no experts");
  const at::Tensor row = packed_.select(0, at - layers_.begin());
  row.narrow(0, 0, num_experts_).add_(counts_E);
  row.select(0, num_experts_).add_(entropy);
  // Dropped: the slots less the rows that were kept.
  row.select(0, num_experts_ + 1)
      .sub_(offsets_E1.select(0, num_experts_))
      .add_(static_cast<double>(num_slots));
}

void LoadStatistics::reset() {
  packed_.zero_();
}

std::vector<LayerLoad> LoadStatistics::unpack(const at::Tensor& packed_on_cpu, int64_t num_micro) const {
  std::vector<LayerLoad> result;
  const int64_t width = num_experts_ + 2;
  const float* data = packed_on_cpu.const_data_ptr<float>();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const float* row = data + static_cast<int64_t>(i) * width;
    LayerLoad layer;
    layer.layer = layers_[i];
    double sum = 0;
    for (int64_t e = 0; e < num_experts_; ++e) sum += row[e];
    const double mean = sum / static_cast<double>(num_experts_);
    for (int64_t e = 0; e < num_experts_; ++e)
      layer.load.push_back(mean > 0 ? static_cast<float>(row[e] / mean) : 0.0f);
    layer.max_violation = *std::max_element(layer.load.begin(), layer.load.end()) - 1.0;
    layer.entropy = row[num_experts_] / static_cast<double>(std::max<int64_t>(num_micro, 1));
    layer.dropped_slots = std::llround(row[num_experts_ + 1]);
    result.push_back(std::move(layer));
  }
  return result;
}

void LoadStatistics::update_bias(nn::ParamTable& params, double rate, const at::Tensor& scale) const {
  const at::NoGradGuard no_grad;
  const at::Tensor counts_LE = packed_.narrow(1, 0, num_experts_);
  const at::Tensor step_LE =
      (counts_LE.mean(1, true) - counts_LE).sign_().mul_(at::isfinite(scale).to(at::kFloat) * rate);
  for (size_t i = 0; i < layers_.size(); ++i) {
    nn::Param* const param = bias_of(params, i);
    if (param == nullptr) continue;
    const at::Tensor& bias = param->value;
    bias.add_(step_LE.select(0, static_cast<int64_t>(i)));
    bias.sub_(bias.mean());
  }
}

void LoadStatistics::update_bias(nn::ParamTable& params, std::vector<ForecastBias>& rules) const {
  const at::NoGradGuard no_grad;
  MOEBIUS_CHECK_EQ(rules.size(), layers_.size());
  const at::Tensor counts_LE = packed_.narrow(1, 0, num_experts_).to(at::kCPU, at::kDouble).contiguous();
  for (size_t i = 0; i < layers_.size(); ++i) {
    nn::Param* const param = bias_of(params, i);
    const at::Tensor shares_E = counts_LE.select(0, static_cast<int64_t>(i));
    const at::Tensor bias_E = param != nullptr ? param->value.to(at::kCPU, at::kDouble).contiguous()
                                               : at::zeros({num_experts_}, at::kDouble);
    shares_E.div_(shares_E.sum());
    const auto size = static_cast<size_t>(num_experts_);
    rules[i].update(std::span(shares_E.const_data_ptr<double>(), size),
                    std::span(bias_E.mutable_data_ptr<double>(), size));
    if (param != nullptr) param->value.copy_(bias_E);
  }
}

nn::Param* LoadStatistics::bias_of(nn::ParamTable& params, size_t i) const {
  return params.find(concat("layers.", layers_[i], ".moe.router_bias"));
}

}  // namespace moebius::moe
