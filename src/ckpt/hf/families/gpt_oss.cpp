// gpt-oss: attention sinks, windows on every second layer, biases everywhere, clamped SwiGLU. All experts of
// a layer are one tensor with gate and up columns interleaved, transposed against ours. The published files
// hold the experts in MXFP4 (4 bits), which becomes bf16 (plan.h). (OpenAI 2025)
#include <nlohmann/json.hpp>

#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

std::vector<int64_t> even_layers(int64_t num_layers) {
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < num_layers; layer += 2) layers.push_back(layer);
  return layers;
}

void default_rope(config::RopeConfig& rope) {
  rope.scaling = "yarn";
  rope.factor = 32.0;
  rope.original_context = 4096;
  rope.truncate = false;
}

config::ModelConfig read_gpt_oss(const JsonReader& json) {
  config::ModelConfig model = read_common(json, 150000.0, 1e-5);
  if (!json.has("rope_parameters") && !json.has("rope_scaling")) default_rope(model.rope);
  if (model.head_dim == 0) model.head_dim = 64;
  model.attention_bias = model.attention_output_bias = json.boolean("attention_bias", true);
  model.attention_sinks = true;
  model.sliding_layers = sliding_layers(json, even_layers(model.layers), model.layers);
  if (!model.sliding_layers.empty()) model.sliding_window = json.integer("sliding_window", 128);
  model.moe.experts = json.integer(json.has("num_local_experts") ? "num_local_experts" : "num_experts", 128);
  model.moe.top_k =
      json.integer(json.has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token", 4);
  model.moe.expert_dim = model.ffn_dim;
  model.moe.softmax_order = "after_topk";
  model.moe.router_bias = model.moe.expert_bias = true;
  model.moe.activation = "clamped_swiglu";
  model.moe.activation_limit = json.number("swiglu_limit", 7.0);
  model.moe.balance.aux_loss = json.number("router_aux_loss_coef", 0.001);
  return model;
}

void write_gpt_oss(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["intermediate_size"] = model.moe.expert_dim;
  json["attention_bias"] = model.attention_bias;
  json["sliding_window"] = model.sliding_window;
  write_layer_types(model, json);
  json["num_local_experts"] = model.moe.experts;
  json["num_experts_per_tok"] = model.moe.top_k;
  json["swiglu_limit"] = model.moe.activation_limit;
  json["router_aux_loss_coef"] = model.moe.balance.aux_loss;
  json["output_router_logits"] = false;
}

std::vector<Piece> gpt_oss_pieces(const config::ModelConfig& model, const JsonReader& /*json*/) {
  Pieces pieces(model);
  pieces.embeddings();
  const int64_t experts = model.moe.experts, dim = model.dim, width = model.moe.expert_dim;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string disk = layer_on_disk(layer) + "mlp.", ours = our_layer(layer) + "moe.";
    pieces.norms(layer);
    pieces.grouped_attention(layer);
    pieces.whole(layer_on_disk(layer) + "self_attn.sinks", {model.heads},
                 our_layer(layer) + "attention.sinks");
    pieces.whole(disk + "router.weight", {experts, dim}, ours + "router");
    pieces.whole(disk + "router.bias", {experts}, ours + "router_logit_bias");
    pieces.add({.name = disk + "experts.gate_up_proj",
                .shape = {experts, dim, 2 * width},
                .param = ours + "gate_up",
                .transposed = true});
    pieces.whole(disk + "experts.gate_up_proj_bias", {experts, 2 * width}, ours + "gate_up_bias");
    pieces.add({.name = disk + "experts.down_proj",
                .shape = {experts, width, dim},
                .param = ours + "down",
                .transposed = true});
    pieces.whole(disk + "experts.down_proj_bias", {experts, dim}, ours + "down_bias");
  }
  return pieces.take();
}

}  // namespace

const Family kGptOss{"gpt_oss", "GptOssForCausalLM", read_gpt_oss, write_gpt_oss, gpt_oss_pieces};

}  // namespace moebius::ckpt::hf
