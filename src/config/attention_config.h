// What a layer's attention adds to the plain form: scaled rotary positions and latent keys and values.
#pragma once

#include <cstdint>
#include <string>

#include "config/field.h"

namespace moebius::config {

// The names and formulas of Transformers' modeling_rope_utils.py (ops/rope_scaling.h has them).
struct RopeConfig {
  std::string scaling = "none";
  double factor = 1.0;
  int64_t original_context = 0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;
  double mscale_all_dim = 0.0;
  double attention_factor = 0.0;
  bool truncate = true;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
};

template <class V>
void describe(V& v, RopeConfig& c) {
  v.field("scaling", c.scaling, one_of({"none", "linear", "dynamic", "yarn", "llama3"}), "",
          "How the rotary frequencies are stretched for contexts longer than the model was trained for.");
  v.field("factor", c.factor, range(0, 1e6), "", "By how much the context is stretched; 1 or more.");
  v.field("original_context", c.original_context, range(0, 1 << 30), "tokens",
          "Context before stretching; dynamic, yarn and llama3 need it.");
  v.field("beta_fast", c.beta_fast, range(0, 1e6), "turns",
          "yarn: channels that turn more often than this over the original context keep their frequency.");
  v.field("beta_slow", c.beta_slow, range(0, 1e6), "turns",
          "yarn: channels that turn less often than this are stretched by the whole factor.");
  v.field("mscale", c.mscale, range(0, 1000), "",
          "yarn: with mscale_all_dim, gives the attention factor as a quotient (DeepSeek). 0: absent.");
  v.field("mscale_all_dim", c.mscale_all_dim, range(0, 1000), "",
          "yarn: latent attention multiplies its scores by (0.1 * this * ln(factor) + 1)^2 (DeepSeek). 0: "
          "absent.");
  v.field("attention_factor", c.attention_factor, range(0, 1000), "",
          "yarn: factor on the rotated queries and keys. 0: from factor, mscale and mscale_all_dim.");
  v.field("truncate", c.truncate, any(), "", "yarn: round the borders of the ramp to whole channels.");
  v.field("low_freq_factor", c.low_freq_factor, range(0, 1e6), "",
          "llama3: wavelengths above original_context divided by this are stretched by the whole factor.");
  v.field("high_freq_factor", c.high_freq_factor, range(0, 1e6), "",
          "llama3: wavelengths below original_context divided by this are kept.");
}

// Multi-head latent attention. (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1)
struct MlaConfig {
  int64_t q_rank = 0;
  int64_t kv_rank = 512;
  int64_t nope_dim = 128;
  int64_t rope_dim = 64;
  int64_t value_dim = 128;
  double latent_norm_eps = 1e-6;
};

template <class V>
void describe(V& v, MlaConfig& c) {
  v.field("q_rank", c.q_rank, range(0, 1 << 16), "", "Width of the queries' latent; 0: no compression.");
  v.field("kv_rank", c.kv_rank, range(1, 1 << 16), "", "Width of the latent of keys and values.");
  v.field("nope_dim", c.nope_dim, range(1, 4096), "", "Channels of a query or key head without position.");
  v.field("rope_dim", c.rope_dim, range(1, 4096), "",
          "Rotated channels of a query head, and of the one rotary key that all heads share; even.");
  v.field("value_dim", c.value_dim, range(1, 4096), "", "Channels of a value head.");
  v.field("latent_norm_eps", c.latent_norm_eps, range(0, 1), "",
          "Added to the mean square in the norms of the latents.");
}

// Multi-token prediction: one more block predicts the token after the next one. (DeepSeek-AI 2024,
// "DeepSeek-V3 Technical Report", section 2.2)
struct MtpConfig {
  int64_t depth = 0;
  double loss_weight = 0.3;
};

template <class V>
void describe(V& v, MtpConfig& c) {
  v.field("depth", c.depth, range(0, 1), "", "Further tokens that training predicts; 0: none.");
  v.field("loss_weight", c.loss_weight, range(0, 100), "", "Factor on their cross-entropy.");
}

}  // namespace moebius::config
