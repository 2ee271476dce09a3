// Qwen3-MoE: q/k norms per head, a head size of its own, dense layers by list and step. (Qwen team 2025)
#include <nlohmann/json.hpp>

#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

config::ModelConfig read_qwen3_moe(const JsonReader& json) {
  config::ModelConfig model = read_common(json);
  model.qk_norm = "head";
  model.attention_bias = model.attention_output_bias = json.boolean("attention_bias", false);
  if (json.boolean("use_sliding_window", false)) model.sliding_window = json.integer("sliding_window", 4096);
  model.moe.experts = json.integer(json.has("num_experts") ? "num_experts" : "num_local_experts", 128);
  model.moe.top_k = json.integer("num_experts_per_tok", 8);
  model.moe.expert_dim = json.integer("moe_intermediate_size", 768);
  model.moe.normalize_weights = json.boolean("norm_topk_prob", false);
  model.moe.dense_layers = qwen_dense_layers(json, model.layers);
  model.moe.balance.aux_loss = json.number("router_aux_loss_coef", 0.001);
  return model;
}

void write_qwen3_moe(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["attention_bias"] = model.attention_bias;
  json["use_sliding_window"] = model.sliding_window > 0;
  json["sliding_window"] = nullptr;
  if (model.sliding_window > 0) json["sliding_window"] = model.sliding_window;
  write_qwen_moe(model, json);
}

}  // namespace

const Family kQwen3Moe{"qwen3_moe", "Qwen3MoeForCausalLM", read_qwen3_moe, write_qwen3_moe, standard_pieces};

}  // namespace moebius::ckpt::hf
