// What several families share: fields of config.json and groups of tensors.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ckpt/hf/json_reader.h"
#include "ckpt/hf/piece.h"
#include "config/model_config.h"

namespace moebius::ckpt::hf {

// Sizes, vocabulary, norm epsilon, tied embeddings, initial weights, rotary positions, and grouped heads.
// `default_theta`: of the rotary positions, where the file has none.
config::ModelConfig read_common(const JsonReader& json, double default_theta = 10000.0,
                                double default_eps = 1e-6);
void write_common(const config::ModelConfig& model, nlohmann::ordered_json& json);

// rope_parameters (Transformers 5), or rope_theta and rope_scaling (before). UserError for a rope type that
// is not supported.
void read_rope(const JsonReader& json, double default_theta, config::ModelConfig& model);
void write_rope(const config::ModelConfig& model, nlohmann::ordered_json& json);

// Layers that are dense: those in `mlp_only_layers`, and those that decoder_sparse_step leaves out (Qwen).
std::vector<int64_t> qwen_dense_layers(const JsonReader& json, int64_t num_layers);
// The routed experts of both Qwen families.
void write_qwen_moe(const config::ModelConfig& model, nlohmann::ordered_json& json);
// The first `count` layers (DeepSeek, GLM), as far as there are so many.
std::vector<int64_t> first_layers(int64_t count, int64_t num_layers);

// Layers named "sliding_attention" in layer_types; without that field, `fallback`.
std::vector<int64_t> sliding_layers(const JsonReader& json, std::vector<int64_t> fallback,
                                    int64_t num_layers);

// layer_types: which layers the window holds for.
void write_layer_types(const config::ModelConfig& model, nlohmann::ordered_json& json);

bool is_dense_layer(const config::ModelConfig& model, int64_t layer);
int64_t head_dim_of(const config::ModelConfig& model);

// Collects pieces.
class Pieces {
 public:
  explicit Pieces(const config::ModelConfig& model) : model_(model) {}

  void add(Piece piece) { pieces_.push_back(std::move(piece)); }
  // A tensor that is a whole parameter.
  void whole(std::string name, std::vector<int64_t> shape, std::string param);

  void embeddings();  // model.embed_tokens, model.norm, lm_head unless tied
  void norms(int64_t layer);
  // Of the module of multi-token prediction, where the model has one: what stands beside its block, which is
  // the layer behind the last.
  void prediction();
  // self_attn.{q,k,v,o}_proj with the biases and q/k norms that the model has.
  void grouped_attention(int64_t layer);
  // {gate,up,down}_proj of a dense SwiGLU, at `disk` ("model.layers.0.mlp.") and `ours` ("layers.0.ffn.").
  void swiglu(const std::string& disk, const std::string& ours, int64_t hidden, bool bias);
  struct ExpertNames {
    std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
  };
  // One tensor per expert and projection, below `disk` ("model.layers.0.mlp.experts.").
  void experts(int64_t layer, const std::string& disk, const ExpertNames& names);
  void experts(int64_t layer, const std::string& disk) { experts(layer, disk, ExpertNames()); }

  // What most families have at model.layers.<i>.mlp: the dense SwiGLU of a dense layer, or router, correction
  // bias and shared experts where the model has them, and the experts.
  void feed_forward(int64_t layer, const std::string& shared_name = "shared_experts");

  std::vector<Piece> take() { return std::move(pieces_); }

 private:
  const config::ModelConfig& model_;
  std::vector<Piece> pieces_;
};

// Embeddings, and layers of norms, grouped attention and feed_forward: most families. For Family::pieces.
std::vector<Piece> standard_pieces(const config::ModelConfig& model, const JsonReader& json);

std::string layer_on_disk(int64_t layer);  // "model.layers.3."
std::string our_layer(int64_t layer);      // "layers.3."

}  // namespace moebius::ckpt::hf
