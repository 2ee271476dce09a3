#include "train/flops.h"

#include "moe/moe_feed_forward.h"

namespace moebius::train {
namespace {

int64_t head_dim(const config::ModelConfig& model) {
  return model.head_dim > 0 ? model.head_dim : model.dim / model.heads;
}

}  // namespace

int64_t active_linear_weights(const config::ModelConfig& model) {
  int64_t weights = model.vocab * model.dim;
  const int64_t attention = model.dim * head_dim(model) * (2 * model.heads + 2 * model.kv_heads);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    weights += attention;
    if (moe::is_moe_layer(model, layer)) {
      weights += model.dim * model.moe.experts +
                 3 * model.dim * model.moe.expert_dim * (model.moe.top_k + model.moe.shared_experts);
    } else {
      weights += 3 * model.dim * model.ffn_dim;
    }
  }
  return weights;
}

double model_flops_per_token(const config::ModelConfig& model, int64_t sequence) {
  return 6.0 * static_cast<double>(active_linear_weights(model)) +
         6.0 * static_cast<double>(model.layers * sequence * model.heads * head_dim(model));
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
