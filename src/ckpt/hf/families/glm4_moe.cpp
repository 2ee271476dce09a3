// GLM-4.5: half of each head rotated, optional q/k norms, sigmoid scores with a correction bias, shared
// experts. (GLM-4.5 team 2025)
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

double rotated_share(const JsonReader& json) {
  double share = json.number("partial_rotary_factor", 0.5);
  if (json.has("rope_parameters"))
    share = json.object("rope_parameters").number("partial_rotary_factor", share);
  if (!(share > 0 && share <= 1))
    throw_user_error(json.where(), ": partial_rotary_factor is ", share,
                     "; it must be above 0 and at most 1");
  return share;
}

config::ModelConfig read_glm4_moe(const JsonReader& json) {
  config::ModelConfig model = read_common(json, 10000.0, 1e-5);
  model.qk_norm = json.boolean("use_qk_norm", false) ? "head" : "none";
  model.attention_bias = json.boolean("attention_bias", false);
  const auto rotated = static_cast<int64_t>(static_cast<double>(head_dim_of(model)) * rotated_share(json));
  model.rotary_dim = rotated == head_dim_of(model) ? 0 : rotated;
  model.moe.experts = json.integer("n_routed_experts", 128);
  model.moe.top_k = json.integer("num_experts_per_tok", 8);
  model.moe.expert_dim = json.integer("moe_intermediate_size", 1408);
  model.moe.shared_experts = json.integer("n_shared_experts", 1);
  model.moe.score = "sigmoid";
  model.moe.selection_bias = true;
  model.moe.normalize_weights = json.boolean("norm_topk_prob", true);
  model.moe.weight_scale = json.number("routed_scaling_factor", 1.0);
  model.moe.groups = json.integer("n_group", 1);
  model.moe.top_groups = json.integer("topk_group", 1);
  model.moe.group_score = "top2_sum";
  model.moe.dense_layers = first_layers(json.integer("first_k_dense_replace", 1), model.layers);
  model.moe.balance.aux_loss = 0;
  return model;
}

void write_glm4_moe(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["use_qk_norm"] = model.qk_norm == "head";
  json["attention_bias"] = model.attention_bias;
  const auto width = static_cast<double>(head_dim_of(model));
  const double share = model.rotary_dim > 0 ? static_cast<double>(model.rotary_dim) / width : 1.0;
  json["partial_rotary_factor"] = share;
  json["rope_parameters"]["partial_rotary_factor"] = share;
  json["n_routed_experts"] = model.moe.experts;
  json["num_experts_per_tok"] = model.moe.top_k;
  json["moe_intermediate_size"] = model.moe.expert_dim;
  json["n_shared_experts"] = model.moe.shared_experts;
  json["norm_topk_prob"] = model.moe.normalize_weights;
  json["routed_scaling_factor"] = model.moe.weight_scale;
  json["n_group"] = model.moe.groups;
  json["topk_group"] = model.moe.top_groups;
  json["first_k_dense_replace"] = model.moe.dense_layers.size();
  json["num_nextn_predict_layers"] = model.mtp.depth;
}

}  // namespace

const Family kGlm4Moe{"glm4_moe",     "Glm4MoeForCausalLM", read_glm4_moe,
                      write_glm4_moe, standard_pieces,      /*has_mtp=*/true};

}  // namespace moebius::ckpt::hf
