// The model: shape of the decoder. Its experts are in moe_config.h, further forms of attention in
// attention_config.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "config/attention_config.h"
#include "config/field.h"
#include "config/moe_config.h"

namespace moebius::config {

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
  std::string attention = "gqa";
  bool attention_bias = false;
  bool attention_output_bias = false;
  bool attention_sinks = false;
  bool ffn_bias = false;
  int64_t sliding_window = 0;
  std::vector<int64_t> sliding_layers;
  int64_t rotary_dim = 0;
  RopeConfig rope;
  MlaConfig mla;
  MtpConfig mtp;
  MoeConfig moe;

  bool is_latent() const { return attention == "mla"; }
  // Channels of a query or key head, of a value head, and of those that are rotated.
  int64_t query_dim() const {
    if (is_latent()) return mla.nope_dim + mla.rope_dim;
    return head_dim > 0 ? head_dim : dim / heads;
  }
  int64_t value_dim() const { return is_latent() ? mla.value_dim : query_dim(); }
  int64_t rotated_dim() const {
    if (is_latent()) return mla.rope_dim;
    return rotary_dim > 0 ? rotary_dim : query_dim();
  }
  // Tokens that a query of a layer sees, itself included; 0: all.
  int64_t window_of(int64_t layer) const {
    const bool slides = sliding_layers.empty() || std::find(sliding_layers.begin(), sliding_layers.end(),
                                                            layer) != sliding_layers.end();
    return slides ? sliding_window : 0;
  }
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
  v.field("attention", c.attention, one_of({"gqa", "mla"}), "",
          "gqa: heads with keys and values of their own or shared by groups. mla: latent attention, whose "
          "widths are in [model.mla]; kv_heads and head_dim are not used.");
  v.field("attention_bias", c.attention_bias, any(), "",
          "Biases of the query, key and value projections (mla: of the projections to the latents).");
  v.field("attention_output_bias", c.attention_output_bias, any(), "", "Bias of the output projection.");
  v.field("attention_sinks", c.attention_sinks, any(), "",
          "One learned logit per query head joins the denominator of the softmax (gpt-oss).");
  v.field("ffn_bias", c.ffn_bias, any(), "", "Biases of dense feed-forward layers.");
  v.field("sliding_window", c.sliding_window, range(0, 1 << 30), "tokens",
          "Tokens that a query sees, itself included. 0: all.");
  v.field("sliding_layers", c.sliding_layers, at_least(0), "",
          "Layers (from 0) that the window holds for; empty: every layer.");
  v.field("rotary_dim", c.rotary_dim, range(0, 4096), "",
          "Leading channels of a head that are rotated; even. 0: all.");
  v.section("rope", c.rope, "Rotary positions beyond the context of training.");
  v.section("mla", c.mla, "Latent attention.");
  v.section("mtp", c.mtp, "Multi-token prediction in training.");
  v.section("moe", c.moe, "Routed experts.");
}

}  // namespace moebius::config
