// Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): biases on queries, keys and values; beside the routed
// experts one shared expert whose output is scaled by a sigmoid gate. (Qwen team 2024)
#include <nlohmann/json.hpp>

#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

// As Transformers fills a missing layer_types: every second layer below max_window_layers.
std::vector<int64_t> default_sliding_layers(const JsonReader& json, int64_t num_layers) {
  std::vector<int64_t> layers;
  const int64_t end = std::min(num_layers, json.integer("max_window_layers", 28));
  for (int64_t layer = 0; layer < end; layer += 2) layers.push_back(layer);
  return layers;
}

config::ModelConfig read_qwen2_moe(const JsonReader& json) {
  config::ModelConfig model = read_common(json);
  model.attention_bias = json.boolean("qkv_bias", true);
  if (json.boolean("use_sliding_window", false)) {
    model.sliding_layers = sliding_layers(json, default_sliding_layers(json, model.layers), model.layers);
    if (!model.sliding_layers.empty()) model.sliding_window = json.integer("sliding_window", 4096);
  }
  model.moe.experts = json.integer("num_experts", 60);
  model.moe.top_k = json.integer("num_experts_per_tok", 4);
  model.moe.expert_dim = json.integer("moe_intermediate_size", 1408);
  model.moe.shared_experts = 1;
  model.moe.shared_dim = json.integer("shared_expert_intermediate_size", 5632);
  model.moe.shared_gate = true;
  model.moe.normalize_weights = json.boolean("norm_topk_prob", false);
  model.moe.dense_layers = qwen_dense_layers(json, model.layers);
  model.moe.balance.aux_loss = json.number("router_aux_loss_coef", 0.001);
  return model;
}

void write_qwen2_moe(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["qkv_bias"] = model.attention_bias;
  json["use_sliding_window"] = model.sliding_window > 0;
  if (model.sliding_window > 0) {
    json["sliding_window"] = model.sliding_window;
    write_layer_types(model, json);
  }
  write_qwen_moe(model, json);
  json["shared_expert_intermediate_size"] = model.moe.shared_width();
}

std::vector<Piece> qwen2_moe_pieces(const config::ModelConfig& model, const JsonReader& /*json*/) {
  Pieces pieces(model);
  pieces.embeddings();
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    pieces.norms(layer);
    pieces.grouped_attention(layer);
    pieces.feed_forward(layer, "shared_expert");
  }
  return pieces.take();
}

}  // namespace

const Family kQwen2Moe{"qwen2_moe", "Qwen2MoeForCausalLM", read_qwen2_moe, write_qwen2_moe, qwen2_moe_pieces};

}  // namespace moebius::ckpt::hf
