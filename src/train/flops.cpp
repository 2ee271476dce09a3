#include "train/flops.h"

#include "moe/moe_feed_forward.h"
#include "nn/recompute.h"
#include "train/step.h"

namespace moebius::train {
namespace {

int64_t attention_weights(const config::ModelConfig& model) {
  const int64_t dim = model.dim, heads = model.heads, out = heads * model.value_dim() * dim;
  if (!model.is_latent())
    return dim * ((heads + model.kv_heads) * model.query_dim() + model.kv_heads * model.value_dim()) + out;
  const config::MlaConfig& mla = model.mla;
  const int64_t query_width = heads * model.query_dim();
  const int64_t queries = mla.q_rank > 0 ? dim * mla.q_rank + mla.q_rank * query_width : dim * query_width;
  return queries + dim * (mla.kv_rank + mla.rope_dim) + mla.kv_rank * heads * (mla.nope_dim + mla.value_dim) +
         out;
}

int64_t block_weights(const config::ModelConfig& model, int64_t layer) {
  const config::MoeConfig& moe = model.moe;
  if (!moe::is_moe_layer(model, layer)) return attention_weights(model) + 3 * model.dim * model.ffn_dim;
  return attention_weights(model) + model.dim * moe.experts +
         3 * model.dim * (moe.expert_dim * moe.top_k + moe.shared_width()) +
         (moe.shared_gate ? model.dim : 0);
}

// Tokens that a query sees, mean over a sequence; S / 2 counts the diagonal by half, as usual.
double mean_keys(const config::ModelConfig& model, int64_t layer, int64_t sequence) {
  const double all = static_cast<double>(sequence), window = static_cast<double>(model.window_of(layer));
  return window == 0 || window >= all ? all / 2 : window - window * window / (2 * all);
}

}  // namespace

int64_t active_linear_weights(const config::ModelConfig& model) {
  int64_t weights = model.vocab * model.dim;
  for (int64_t layer = 0; layer < model.layers; ++layer) weights += block_weights(model, layer);
  if (model.mtp.depth > 0)
    weights += 2 * model.dim * model.dim + block_weights(model, model.layers) + model.vocab * model.dim;
  return weights;
}

double model_flops_per_token(const config::ModelConfig& model, int64_t sequence) {
  double keys = 0;
  for (int64_t layer = 0; layer < model.layers + model.mtp.depth; ++layer)
    keys += mean_keys(model, layer, sequence);
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
        flops += 2.0 * static_cast<double>(block_weights(model, layer)) +
                 2.0 * mean_keys(model, layer, config.train.sequence) * channels;
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
