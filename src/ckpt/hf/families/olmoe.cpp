// OLMoE: q/k norms over the whole projection, routing weights as the softmax gives them. (Muennighoff et al.
// 2024)
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

config::ModelConfig read_olmoe(const JsonReader& json) {
  config::ModelConfig model = read_common(json, 10000.0, 1e-5);
  if (json.has("clip_qkv"))
    throw_user_error(json.where(), ": clip_qkv = ", json.number("clip_qkv"),
                     " is not supported; only models without clipping are");
  model.head_dim = 0;
  model.qk_norm = "full";
  model.attention_bias = model.attention_output_bias = json.boolean("attention_bias", false);
  model.moe.experts = json.integer(json.has("num_experts") ? "num_experts" : "num_local_experts", 64);
  model.moe.top_k = json.integer("num_experts_per_tok", 8);
  model.moe.expert_dim = model.ffn_dim;
  model.moe.normalize_weights = json.boolean("norm_topk_prob", false);
  model.moe.balance.aux_loss = json.number("router_aux_loss_coef", 0.01);
  return model;
}

void write_olmoe(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json.erase("head_dim");
  json["attention_bias"] = model.attention_bias;
  json["intermediate_size"] = model.moe.expert_dim;
  json["clip_qkv"] = nullptr;
  json["num_experts"] = model.moe.experts;
  json["num_experts_per_tok"] = model.moe.top_k;
  json["norm_topk_prob"] = model.moe.normalize_weights;
  json["router_aux_loss_coef"] = model.moe.balance.aux_loss;
  json["output_router_logits"] = false;
}

}  // namespace

const Family kOlmoe{"olmoe", "OlmoeForCausalLM", read_olmoe, write_olmoe, standard_pieces};

}  // namespace moebius::ckpt::hf
