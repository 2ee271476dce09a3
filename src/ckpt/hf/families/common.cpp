#include "ckpt/hf/families/common.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "ckpt/text.h"

namespace moebius::ckpt::hf {

config::ModelConfig read_common(const JsonReader& json, double default_theta, double default_eps) {
  config::ModelConfig model;
  json.need_text("hidden_act", "silu");
  // Bounds of what is computed with before the whole config is checked.
  constexpr int64_t kMostLayers = 1000, kMost = 1 << 20;
  model.layers = json.integer_within("num_hidden_layers", 1, kMostLayers);
  model.dim = json.integer_within("hidden_size", 1, kMost);
  model.heads = json.integer_within("num_attention_heads", 1, kMost);
  model.kv_heads = json.integer("num_key_value_heads", model.heads);
  if (json.has("head_dim")) model.head_dim = json.integer_within("head_dim", 0, kMost);
  model.ffn_dim = json.integer("intermediate_size");
  model.vocab = json.integer("vocab_size");
  model.norm_eps = json.number("rms_norm_eps", default_eps);
  model.tied_embeddings = json.boolean("tie_word_embeddings", false);
  model.init_std = json.number("initializer_range", 0.02);
  read_rope(json, default_theta, model);
  return model;
}

void write_common(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["hidden_act"] = "silu";
  json["num_hidden_layers"] = model.layers;
  json["hidden_size"] = model.dim;
  json["num_attention_heads"] = model.heads;
  json["num_key_value_heads"] = model.kv_heads;
  json["head_dim"] = head_dim_of(model);
  json["intermediate_size"] = model.ffn_dim;
  json["vocab_size"] = model.vocab;
  json["rms_norm_eps"] = model.norm_eps;
  json["tie_word_embeddings"] = model.tied_embeddings;
  json["initializer_range"] = model.init_std;
  json["attention_dropout"] = 0.0;
  write_rope(model, json);
}

namespace {

void read_scaling(const JsonReader& rope, int64_t max_positions, config::RopeConfig& out) {
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (type == "default") return;
  if (type != "linear" && type != "dynamic" && type != "yarn" && type != "llama3")
    throw_user_error(rope.where(), ": the rope type ", in_quotes(type),
                     " is not supported; supported are default, linear, dynamic, yarn and llama3");
  out.scaling = type;
  out.factor = rope.number("factor");
  if (type == "linear") return;
  out.original_context =
      type == "dynamic" ? max_positions : rope.integer("original_max_position_embeddings", max_positions);
  if (type == "dynamic") return;
  if (type == "llama3") {
    out.low_freq_factor = rope.number("low_freq_factor");
    out.high_freq_factor = rope.number("high_freq_factor");
    return;
  }
  out.beta_fast = rope.number("beta_fast", 32.0);
  out.beta_slow = rope.number("beta_slow", 1.0);
  out.mscale = rope.number("mscale", 0.0);
  out.mscale_all_dim = rope.number("mscale_all_dim", 0.0);
  out.attention_factor = rope.number("attention_factor", 0.0);
  out.truncate = rope.boolean("truncate", true);
}

}  // namespace

void read_rope(const JsonReader& json, double default_theta, config::ModelConfig& model) {
  const int64_t max_positions = json.integer("max_position_embeddings", 2048);
  model.rope_theta = json.number("rope_theta", default_theta);
  for (const char* const key : {"rope_scaling", "rope_parameters"}) {
    if (!json.has(key)) continue;
    const JsonReader rope = json.object(key);
    model.rope_theta = rope.number("rope_theta", model.rope_theta);
    read_scaling(rope, max_positions, model.rope);
    return;
  }
}

void write_rope(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  const config::RopeConfig& rope = model.rope;
  nlohmann::ordered_json out;
  out["rope_type"] = rope.scaling == "none" ? "default" : rope.scaling;
  out["rope_theta"] = model.rope_theta;
  if (rope.scaling != "none") out["factor"] = rope.factor;
  if (rope.scaling == "llama3" || rope.scaling == "yarn")
    out["original_max_position_embeddings"] = rope.original_context;
  if (rope.scaling == "dynamic") json["max_position_embeddings"] = rope.original_context;
  if (rope.scaling == "llama3") {
    out["low_freq_factor"] = rope.low_freq_factor;
    out["high_freq_factor"] = rope.high_freq_factor;
  }
  if (rope.scaling == "yarn") {
    out["beta_fast"] = rope.beta_fast;
    out["beta_slow"] = rope.beta_slow;
    if (rope.mscale > 0) out["mscale"] = rope.mscale;
    if (rope.mscale_all_dim > 0) out["mscale_all_dim"] = rope.mscale_all_dim;
    if (rope.attention_factor > 0) out["attention_factor"] = rope.attention_factor;
    out["truncate"] = rope.truncate;
  }
  json["rope_parameters"] = out;
}

std::vector<int64_t> qwen_dense_layers(const JsonReader& json, int64_t num_layers) {
  const std::vector<int64_t> only = json.integers("mlp_only_layers");
  const int64_t step = json.integer("decoder_sparse_step", 1);
  if (step < 1) throw_user_error(json.where(), ": decoder_sparse_step is ", step, "; it must be at least 1");
  std::vector<int64_t> dense;
  for (int64_t layer = 0; layer < num_layers; ++layer)
    if ((layer + 1) % step != 0 || std::find(only.begin(), only.end(), layer) != only.end())
      dense.push_back(layer);
  return dense;
}

void write_qwen_moe(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  json["num_experts"] = model.moe.experts;
  json["num_experts_per_tok"] = model.moe.top_k;
  json["moe_intermediate_size"] = model.moe.expert_dim;
  json["norm_topk_prob"] = model.moe.normalize_weights;
  json["decoder_sparse_step"] = 1;
  json["mlp_only_layers"] = model.moe.dense_layers;
  json["router_aux_loss_coef"] = model.moe.balance.aux_loss;
  json["output_router_logits"] = false;
}

std::vector<int64_t> first_layers(int64_t count, int64_t num_layers) {
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < std::min(count, num_layers); ++layer) layers.push_back(layer);
  return layers;
}

std::vector<int64_t> sliding_layers(const JsonReader& json, std::vector<int64_t> fallback,
                                    int64_t num_layers) {
  const std::vector<std::string> types = json.texts("layer_types");
  if (types.empty()) return fallback;
  if (static_cast<int64_t>(types.size()) < num_layers)
    throw_user_error(json.where(), ": layer_types names ", types.size(), " layers of ", num_layers);
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const std::string& type = types[static_cast<size_t>(layer)];
    if (type == "sliding_attention")
      layers.push_back(layer);
    else if (type != "full_attention")
      throw_user_error(json.where(), ": layer_types has ", in_quotes(type),
                       "; supported are full_attention and sliding_attention");
  }
  return layers;
}

void write_layer_types(const config::ModelConfig& model, nlohmann::ordered_json& json) {
  // No list means every layer.
  const bool all = model.sliding_window > 0 && model.sliding_layers.empty();
  std::vector<std::string> types(static_cast<size_t>(model.layers),
                                 all ? "sliding_attention" : "full_attention");
  for (const int64_t layer : model.sliding_layers) types[static_cast<size_t>(layer)] = "sliding_attention";
  json["layer_types"] = types;
}

bool is_dense_layer(const config::ModelConfig& model, int64_t layer) {
  const std::vector<int64_t>& dense = model.moe.dense_layers;
  return model.moe.experts == 0 || std::find(dense.begin(), dense.end(), layer) != dense.end();
}

int64_t head_dim_of(const config::ModelConfig& model) {
  return model.head_dim > 0 ? model.head_dim : model.dim / model.heads;
}

std::string layer_on_disk(int64_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

std::string our_layer(int64_t layer) {
  return "layers." + std::to_string(layer) + ".";
}

void Pieces::whole(std::string name, std::vector<int64_t> shape, std::string param) {
  add({.name = std::move(name), .shape = std::move(shape), .param = std::move(param)});
}

void Pieces::embeddings() {
  whole("model.embed_tokens.weight", {model_.vocab, model_.dim}, "embedding");
  whole("model.norm.weight", {model_.dim}, "final_norm");
  if (!model_.tied_embeddings) whole("lm_head.weight", {model_.vocab, model_.dim}, "output");
}

void Pieces::norms(int64_t layer) {
  const std::string disk = layer_on_disk(layer), ours = our_layer(layer);
  whole(disk + "input_layernorm.weight", {model_.dim}, ours + "attention_norm");
  whole(disk + "post_attention_layernorm.weight", {model_.dim}, ours + "ffn_norm");
}

void Pieces::prediction() {
  if (model_.mtp.depth == 0) return;
  const std::string disk = layer_on_disk(model_.layers);
  const int64_t dim = model_.dim;
  whole(disk + "enorm.weight", {dim}, "mtp.embedding_norm");
  whole(disk + "hnorm.weight", {dim}, "mtp.hidden_norm");
  // On disk of the embedding, then of the stream.
  add({.name = disk + "eh_proj.weight",
       .shape = {dim, 2 * dim},
       .param = "mtp.projection",
       .halves_swapped = true});
  whole(disk + "shared_head.norm.weight", {dim}, "mtp.final_norm");
  const auto copy = [&](const char* name, const char* param) {
    add({.name = disk + name, .shape = {model_.vocab, dim}, .param = param, .is_copy = true});
  };
  copy("embed_tokens.weight", "embedding");
  copy("shared_head.head.weight", model_.tied_embeddings ? "embedding" : "output");
}

void Pieces::grouped_attention(int64_t layer) {
  const std::string disk = layer_on_disk(layer) + "self_attn.", ours = our_layer(layer) + "attention.";
  const int64_t width = head_dim_of(model_), dim = model_.dim;
  const int64_t q = model_.heads * width, kv = model_.kv_heads * width;
  struct Part {
    const char* name;
    int64_t begin, rows;
  };
  for (const Part& part : {Part{"q_proj", 0, q}, Part{"k_proj", q, kv}, Part{"v_proj", q + kv, kv}}) {
    add({.name = disk + part.name + ".weight",
         .shape = {part.rows, dim},
         .param = ours + "qkv",
         .row_begin = part.begin});
    if (model_.attention_bias)
      add({.name = disk + part.name + ".bias",
           .shape = {part.rows},
           .param = ours + "qkv_bias",
           .row_begin = part.begin});
  }
  whole(disk + "o_proj.weight", {dim, q}, ours + "out");
  if (model_.attention_output_bias) whole(disk + "o_proj.bias", {dim}, ours + "out_bias");
  if (model_.qk_norm != "none") {
    const bool full = model_.qk_norm == "full";
    whole(disk + "q_norm.weight", {full ? q : width}, ours + "q_norm");
    whole(disk + "k_norm.weight", {full ? kv : width}, ours + "k_norm");
  }
}

void Pieces::swiglu(const std::string& disk, const std::string& ours, int64_t hidden, bool bias) {
  for (int64_t up = 0; up < 2; ++up) {
    const std::string name = disk + (up == 1 ? "up_proj" : "gate_proj");
    add({.name = name + ".weight",
         .shape = {hidden, model_.dim},
         .param = ours + "gate_up",
         .row_begin = up,
         .row_step = 2});
    if (bias)
      add({.name = name + ".bias",
           .shape = {hidden},
           .param = ours + "gate_up_bias",
           .row_begin = up,
           .row_step = 2});
  }
  whole(disk + "down_proj.weight", {model_.dim, hidden}, ours + "down");
  if (bias) whole(disk + "down_proj.bias", {model_.dim}, ours + "down_bias");
}

void Pieces::experts(int64_t layer, const std::string& disk, const ExpertNames& names) {
  const std::string ours = our_layer(layer) + "moe.";
  const int64_t width = model_.moe.expert_dim, dim = model_.dim;
  for (int64_t expert = 0; expert < model_.moe.experts; ++expert) {
    const std::string prefix = disk + std::to_string(expert) + ".";
    for (int64_t up = 0; up < 2; ++up)
      add({.name = prefix + (up == 1 ? names.up : names.gate) + ".weight",
           .shape = {width, dim},
           .param = ours + "gate_up",
           .expert = expert,
           .row_begin = up,
           .row_step = 2});
    add({.name = prefix + names.down + ".weight",
         .shape = {dim, width},
         .param = ours + "down",
         .expert = expert});
  }
}

void Pieces::feed_forward(int64_t layer, const std::string& shared_name) {
  const std::string disk = layer_on_disk(layer) + "mlp.", ours = our_layer(layer);
  if (is_dense_layer(model_, layer)) {
    swiglu(disk, ours + "ffn.", model_.ffn_dim, model_.ffn_bias);
    return;
  }
  const config::MoeConfig& moe = model_.moe;
  whole(disk + "gate.weight", {moe.experts, model_.dim}, ours + "moe.router");
  if (moe.has_selection_bias())
    whole(disk + "gate.e_score_correction_bias", {moe.experts}, ours + "moe.router_bias");
  experts(layer, disk + "experts.");
  if (moe.shared_experts > 0)
    swiglu(disk + shared_name + ".", ours + "moe.shared.", moe.shared_width(), false);
  if (moe.shared_gate) whole(disk + shared_name + "_gate.weight", {1, model_.dim}, ours + "moe.shared_gate");
}

std::vector<Piece> standard_pieces(const config::ModelConfig& model, const JsonReader& /*json*/) {
  Pieces pieces(model);
  pieces.embeddings();
  for (int64_t layer = 0; layer < model.layers + model.mtp.depth; ++layer) {
    pieces.norms(layer);
    pieces.grouped_attention(layer);
    pieces.feed_forward(layer);
  }
  pieces.prediction();
  return pieces.take();
}

}  // namespace moebius::ckpt::hf
