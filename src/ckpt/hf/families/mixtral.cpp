// Mixtral: every layer routed, softmax over all experts, weights of the chosen divided by their sum.
// (Jiang et al. 2024)
#include <nlohmann/json.hpp>

#include "ckpt/hf/families/common.h"
#include "ckpt/hf/families/families.h"

namespace moebius::ckpt::hf {
namespace {

config::ModelConfig read_mixtral(const JsonReader& json) {
  config::ModelConfig model = read_common(json, 1e6, 1e-5);
  json.need_number("router_jitter_noise", 0.0);
  model.sliding_window = json.integer("sliding_window", 0);
  model.moe.experts = json.integer(json.has("num_local_experts") ? "num_local_experts" : "num_experts", 8);
  model.moe.top_k = json.integer("num_experts_per_tok", 2);
  model.moe.expert_dim = model.ffn_dim;
  model.moe.balance.aux_loss = json.number("router_aux_loss_coef", 0.001);
  return model;
}

void write_mixtral(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["intermediate_size"] = model.moe.expert_dim;
  json["num_local_experts"] = model.moe.experts;
  json["num_experts_per_tok"] = model.moe.top_k;
  json["router_aux_loss_coef"] = model.moe.balance.aux_loss;
  json["router_jitter_noise"] = 0.0;
  json["output_router_logits"] = false;
  json["sliding_window"] = nullptr;
  if (model.sliding_window > 0) json["sliding_window"] = model.sliding_window;
}

std::vector<Piece> mixtral_pieces(const config::ModelConfig& model, const JsonReader& /*json*/) {
  Pieces pieces(model);
  pieces.embeddings();
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string disk = layer_on_disk(layer) + "block_sparse_moe.";
    pieces.norms(layer);
    pieces.grouped_attention(layer);
    pieces.whole(disk + "gate.weight", {model.moe.experts, model.dim}, our_layer(layer) + "moe.router");
    pieces.experts(layer, disk + "experts.", {"w1", "w3", "w2"});
  }
  return pieces.take();
}

}  // namespace

const Family kMixtral{"mixtral", "MixtralForCausalLM", read_mixtral, write_mixtral, mixtral_pieces};

}  // namespace moebius::ckpt::hf
