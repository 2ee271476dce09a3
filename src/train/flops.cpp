#include "train/flops.h"

#include "moe/moe_feed_forward.h"
#include "nn/recompute.h"
#include "train/step.h"
#include "tune/layer_split.h"

namespace moebius::train {

int64_t active_linear_weights(const config::ModelConfig& model) {
  int64_t weights = tune::active_weights_behind_layers(model);
  for (int64_t layer = 0; layer < model.layers; ++layer)
    weights += tune::active_weights_of_layer(model, layer);
  return weights;
}

double model_flops_per_token(const config::ModelConfig& model, int64_t sequence) {
  double keys = 0;
  for (int64_t layer = 0; layer < model.layers + model.mtp.depth; ++layer)
    keys += tune::mean_keys(model, layer, sequence);
  const int64_t channels = model.heads * (model.query_dim() + model.value_dim());
  return 6.0 * static_cast<double>(active_linear_weights(model)) + 6.0 * keys * static_cast<double>(channels);
}

double recompute_flops_per_token(const config::RunConfig& config) {
  const config::ModelConfig& model = config.model;
  const auto channels = static_cast<double>(model.heads * (model.query_dim() + model.value_dim()));
  double flops = 0;
  for (int64_t layer = 0; layer < model.layers + model.mtp.depth; ++layer) {
    switch (
        nn::recompute_of_layer(recompute_of(config.train.recompute), config.train.recompute_layers, layer)) {
      case nn::Recompute::none:
        break;
      case nn::Recompute::selective: {  // the up projections
        const int64_t width = moe::is_moe_layer(model, layer)
                                  ? model.moe.expert_dim * model.moe.top_k + model.moe.shared_width()
                                  : model.ffn_dim;
        flops += 2.0 * static_cast<double>(2 * model.dim * width);
        break;
      }
      case nn::Recompute::full:
        flops += 2.0 * static_cast<double>(tune::active_weights_of_layer(model, layer)) +
                 2.0 * tune::mean_keys(model, layer, config.train.sequence) * channels;
        break;
    }
  }
  return flops;
}

std::optional<double> peak_bf16_flops(const std::string& device_name) {
  // Names as NVML gives them. Sources: NVIDIA's data sheets of the A100, H100, H200 and B200, dense rates.
  struct Known {
    const char* part;
    double flops;
  };
  static constexpr Known kKnown[] = {{"H200 NVL", 835e12}, {"H200", 989e12}, {"H100 PCIe", 756e12},
                                     {"H100 NVL", 835e12}, {"H100", 989e12}, {"B200", 2250e12},
                                     {"A100", 312e12},     {"L40S", 362e12}, {"RTX 4090", 165e12}};
  for (const Known& known : kKnown)
    if (device_name.find(known.part) != std::string::npos) return known.flops;
  return std::nullopt;
}

}  // namespace moebius::train
