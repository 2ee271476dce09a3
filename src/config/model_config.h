// The model: shape of the decoder and of its experts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/field.h"

namespace moebius::config {

struct BalanceConfig {
  double aux_loss = 0.01;
  std::string aux_scope = "micro_batch";
  double z_loss = 0.0;
  double bias_rate = 0.0;
};

template <class V>
void describe(V& v, BalanceConfig& c) {
  v.field("aux_loss", c.aux_loss, range(0, 100), "",
          "Coefficient of the load-balancing loss E * sum_e f_e * P_e (Switch/GShard form); 0 turns it off.");
  v.field("aux_scope", c.aux_scope, one_of({"micro_batch", "sequence"}), "",
          "Over which tokens the loss counts load: all of a micro-batch, or each sequence by itself.");
  v.field("z_loss", c.z_loss, range(0, 100), "",
          "Coefficient of the mean squared logsumexp of the router logits (ST-MoE); 0 turns it off.");
  v.field(
      "bias_rate", c.bias_rate, range(0, 1), "",
      "Step of the loss-free bias: after each step bias += rate * sign(mean load - load), recentred to zero "
      "mean; used for selection only. 0 turns it off; 0.001 is the published value.");
}

struct MoeConfig {
  int64_t experts = 0;
  int64_t top_k = 2;
  int64_t expert_dim = 256;
  int64_t shared_experts = 0;
  std::vector<int64_t> dense_layers;
  std::string score = "softmax";
  std::string softmax_order = "before_topk";
  bool normalize_weights = true;
  double weight_scale = 1.0;
  double capacity_factor = 0.0;
  BalanceConfig balance;
};

template <class V>
void describe(V& v, MoeConfig& c) {
  v.field("experts", c.experts, range(0, 1024), "",
          "Routed experts per MoE layer; 0 makes every layer dense.");
  v.field("top_k", c.top_k, range(1, 32), "", "Experts that each token is sent to.");
  v.field("expert_dim", c.expert_dim, at_least(1), "", "Hidden width of one expert.");
  v.field("shared_experts", c.shared_experts, range(0, 64), "",
          "Experts that every token passes, built as one dense SwiGLU of this many times expert_dim.");
  v.field("dense_layers", c.dense_layers, at_least(0), "",
          "Layers (from 0) that get a dense FFN instead of experts.");
  v.field("score", c.score, one_of({"softmax", "sigmoid"}), "", "How router logits become scores.");
  v.field("softmax_order", c.softmax_order, one_of({"before_topk", "after_topk"}), "",
          "Whether the softmax runs over all experts or over the chosen ones.");
  v.field("normalize_weights", c.normalize_weights, any(), "", "Divide the chosen weights by their sum.");
  v.field("weight_scale", c.weight_scale, range(0, 1000), "", "Factor on the chosen weights, applied last.");
  v.field(
      "capacity_factor", c.capacity_factor, range(0, 1000), "",
      "Rows an expert accepts, as a multiple of the mean load; tokens beyond it are dropped. 0: never drop.");
  v.section("balance", c.balance, "How expert load is kept even.");
}

struct ModelConfig {
  int64_t layers = 4;
  int64_t dim = 128;
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t head_dim = 0;
  int64_t ffn_dim = 512;
  int64_t vocab = 0;
  std::string qk_norm = "none";
  double rope_theta = 10000.0;
  double norm_eps = 1e-5;
  bool tied_embeddings = false;
  double init_std = 0.02;
  double output_init_scale = 1.0;
  MoeConfig moe;
};

template <class V>
void describe(V& v, ModelConfig& c) {
  v.field("layers", c.layers, range(1, 1000), "", "Decoder blocks.");
  v.field("dim", c.dim, range(1, 1 << 20), "", "Width of the residual stream.");
  v.field("heads", c.heads, range(1, 4096), "", "Query heads.");
  v.field("kv_heads", c.kv_heads, range(1, 4096), "", "Key and value heads; must divide heads.");
  v.field("head_dim", c.head_dim, range(0, 4096), "", "Width of a head; even. 0: dim / heads.");
  v.field("ffn_dim", c.ffn_dim, at_least(1), "", "Hidden width of dense feed-forward layers.");
  v.field("vocab", c.vocab, range(0, 1 << 24), "tokens", "Rows of the embedding. 0: as the tokenizer says.");
  v.field("qk_norm", c.qk_norm, one_of({"none", "head", "full"}), "",
          "RMS normalisation of queries and keys: none, per head, or over all heads together.");
  v.field("rope_theta", c.rope_theta, range(1, 1e12), "", "Base of the rotary frequencies.");
  v.field("norm_eps", c.norm_eps, range(0, 1), "", "Added to the mean square in RMSNorm.");
  v.field("tied_embeddings", c.tied_embeddings, any(), "", "Use the embedding as output layer too.");
  v.field("init_std", c.init_std, range(0, 10), "", "Standard deviation of the normal initial weights.");
  v.field("output_init_scale", c.output_init_scale, range(0, 10), "",
          "Factor on init_std for the projections that write to the residual stream; 0 starts them at zero.");
  v.section("moe", c.moe, "Routed experts.");
}

}  // namespace moebius::config
