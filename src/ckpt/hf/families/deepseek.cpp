// DeepSeek-V2 and V3: latent attention, shared experts, group-limited routing; V2 with softmax scores, V3
// with sigmoid scores and a correction bias. Rotary channels are pairs on disk. (DeepSeek-AI 2024a, 2024b)
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

// What both have.
config::ModelConfig read_deepseek(const JsonReader& json) {
  config::ModelConfig model = read_common(json);
  model.attention = "mla";
  model.head_dim = 0;
  model.kv_heads = model.heads;
  model.attention_bias = model.attention_output_bias = json.boolean("attention_bias", false);
  model.mla.q_rank = json.integer("q_lora_rank", 0);
  model.mla.kv_rank = json.integer("kv_lora_rank", 512);
  model.mla.nope_dim = json.integer("qk_nope_head_dim", 128);
  model.mla.rope_dim = json.integer("qk_rope_head_dim", 64);
  model.mla.value_dim = json.integer("v_head_dim", 128);
  model.moe.top_k = json.integer("num_experts_per_tok");
  model.moe.balance.aux_loss = 0;
  return model;
}

void write_deepseek(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json.erase("head_dim");
  json["attention_bias"] = model.attention_bias;
  json["q_lora_rank"] = nullptr;
  if (model.mla.q_rank > 0) json["q_lora_rank"] = model.mla.q_rank;
  json["kv_lora_rank"] = model.mla.kv_rank;
  json["qk_nope_head_dim"] = model.mla.nope_dim;
  json["qk_rope_head_dim"] = model.mla.rope_dim;
  json["v_head_dim"] = model.mla.value_dim;
  json["n_routed_experts"] = model.moe.experts;
  json["n_shared_experts"] = model.moe.shared_experts;
  json["num_experts_per_tok"] = model.moe.top_k;
  json["moe_intermediate_size"] = model.moe.expert_dim;
  json["first_k_dense_replace"] = model.moe.dense_layers.size();
  json["moe_layer_freq"] = 1;
  json["n_group"] = model.moe.groups;
  json["topk_group"] = model.moe.top_groups;
  json["routed_scaling_factor"] = model.moe.weight_scale;
}

config::ModelConfig read_deepseek_v2(const JsonReader& json) {
  config::ModelConfig model = read_deepseek(json);
  json.need_boolean("mlp_bias", false);
  json.need_number("moe_layer_freq", 1);
  model.moe.experts = json.integer(json.has("n_routed_experts") ? "n_routed_experts" : "num_experts", 64);
  model.moe.shared_experts = json.integer("n_shared_experts", 2);
  model.moe.expert_dim = json.integer("moe_intermediate_size", 1407);
  model.moe.dense_layers = first_layers(json.integer("first_k_dense_replace", 0), model.layers);
  model.moe.normalize_weights = false;  // the class ignores norm_topk_prob
  model.moe.weight_scale = json.number("routed_scaling_factor", 1.0);
  const std::string method = json.text("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    model.moe.groups = json.integer("n_group");
    model.moe.top_groups = json.integer("topk_group");
  } else if (method != "greedy") {
    throw_user_error(json.where(), ": topk_method = '", method,
                     "' is not supported; supported are greedy and group_limited_greedy");
  }
  return model;
}

void write_deepseek_v2(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  write_deepseek(model, json);
  json["topk_method"] = model.moe.groups > 1 ? "group_limited_greedy" : "greedy";
  json["norm_topk_prob"] = false;
  json["scoring_func"] = "softmax";
  json["mlp_bias"] = false;
}

config::ModelConfig read_deepseek_v3(const JsonReader& json) {
  config::ModelConfig model = read_deepseek(json);
  model.moe.experts =
      json.integer(json.has("n_routed_experts") ? "n_routed_experts" : "num_local_experts", 256);
  model.moe.shared_experts = json.integer("n_shared_experts", 1);
  model.moe.expert_dim = json.integer("moe_intermediate_size", 2048);
  model.moe.dense_layers = first_layers(json.integer("first_k_dense_replace", 3), model.layers);
  model.moe.score = "sigmoid";
  model.moe.selection_bias = true;
  model.moe.normalize_weights = json.boolean("norm_topk_prob", true);
  model.moe.weight_scale = json.number("routed_scaling_factor", 2.5);
  model.moe.groups = json.integer("n_group", 8);
  model.moe.top_groups = json.integer("topk_group", 4);
  model.moe.group_score = "top2_sum";
  return model;
}

void write_deepseek_v3(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  write_deepseek(model, json);
  json["topk_method"] = "noaux_tc";
  json["scoring_func"] = "sigmoid";
  json["norm_topk_prob"] = model.moe.normalize_weights;
  json["rope_interleave"] = true;
  json["num_nextn_predict_layers"] = model.mtp.depth;
}

void add_latent_attention(const config::ModelConfig& model, int64_t layer, bool pairs, Pieces& pieces) {
  const std::string disk = layer_on_disk(layer) + "self_attn.", ours = our_layer(layer) + "attention.";
  const config::MlaConfig& mla = model.mla;
  const int64_t dim = model.dim, heads = model.heads, width = mla.nope_dim + mla.rope_dim;
  const RotaryPairs in_heads{pairs ? width : 0, mla.nope_dim, mla.rope_dim};
  const RotaryPairs in_latent{pairs ? mla.kv_rank + mla.rope_dim : 0, mla.kv_rank, mla.rope_dim};
  if (mla.q_rank == 0) {
    pieces.add({.name = disk + "q_proj.weight",
                .shape = {heads * width, dim},
                .param = ours + "q",
                .pairs = in_heads});
  } else {
    pieces.whole(disk + "q_a_proj.weight", {mla.q_rank, dim}, ours + "q_down");
    if (model.attention_bias) pieces.whole(disk + "q_a_proj.bias", {mla.q_rank}, ours + "q_down_bias");
    pieces.whole(disk + "q_a_layernorm.weight", {mla.q_rank}, ours + "q_down_norm");
    pieces.add({.name = disk + "q_b_proj.weight",
                .shape = {heads * width, mla.q_rank},
                .param = ours + "q_up",
                .pairs = in_heads});
  }
  pieces.add({.name = disk + "kv_a_proj_with_mqa.weight",
              .shape = {mla.kv_rank + mla.rope_dim, dim},
              .param = ours + "kv_down",
              .pairs = in_latent});
  if (model.attention_bias)
    pieces.add({.name = disk + "kv_a_proj_with_mqa.bias",
                .shape = {mla.kv_rank + mla.rope_dim},
                .param = ours + "kv_down_bias",
                .pairs = in_latent});
  pieces.whole(disk + "kv_a_layernorm.weight", {mla.kv_rank}, ours + "kv_norm");
  pieces.whole(disk + "kv_b_proj.weight", {heads * (mla.nope_dim + mla.value_dim), mla.kv_rank},
               ours + "kv_up");
  pieces.whole(disk + "o_proj.weight", {dim, heads * mla.value_dim}, ours + "out");
  if (model.attention_output_bias) pieces.whole(disk + "o_proj.bias", {dim}, ours + "out_bias");
}

std::vector<Piece> deepseek_pieces(const config::ModelConfig& model, const JsonReader& json) {
  // V2 always has pairs; V3 says so.
  const bool pairs = json.boolean("rope_interleave", true);
  Pieces pieces(model);
  pieces.embeddings();
  for (int64_t layer = 0; layer < model.layers + model.mtp.depth; ++layer) {
    pieces.norms(layer);
    add_latent_attention(model, layer, pairs, pieces);
    pieces.feed_forward(layer);
  }
  pieces.prediction();
  return pieces.take();
}

}  // namespace

const Family kDeepseekV2{"deepseek_v2", "DeepseekV2ForCausalLM", read_deepseek_v2, write_deepseek_v2,
                         deepseek_pieces};
const Family kDeepseekV3{"deepseek_v3",     "DeepseekV3ForCausalLM", read_deepseek_v3,
                         write_deepseek_v3, deepseek_pieces,         /*has_mtp=*/true};

}  // namespace moebius::ckpt::hf
