#include "nn/self_attention.h"

#include "nn/attention.h"
#include "nn/latent_attention.h"

namespace moebius::nn {
namespace {

kernels::QkNorm qk_norm_of(const std::string& word) {
  if (word == "head") return kernels::QkNorm::head;
  return word == "full" ? kernels::QkNorm::full : kernels::QkNorm::none;
}

AttentionOptions attention_options(const config::ModelConfig& config, int64_t layer) {
  AttentionOptions options;
  options.dim = config.dim;
  options.num_heads = config.heads;
  options.num_kv_heads = config.kv_heads;
  options.head_dim = config.query_dim();
  options.rotary_dim = config.rotary_dim;
  options.window = config.window_of(layer);
  options.qk_norm = qk_norm_of(config.qk_norm);
  options.norm_eps = config.norm_eps;
  options.bias = config.attention_bias;
  options.output_bias = config.attention_output_bias;
  options.sinks = config.attention_sinks;
  options.init_std = config.init_std;
  options.out_std = config.init_std * config.output_init_scale;
  return options;
}

LatentAttentionOptions latent_options(const config::ModelConfig& config) {
  LatentAttentionOptions options;
  options.dim = config.dim;
  options.num_heads = config.heads;
  options.q_rank = config.mla.q_rank;
  options.kv_rank = config.mla.kv_rank;
  options.nope_dim = config.mla.nope_dim;
  options.rope_dim = config.mla.rope_dim;
  options.value_dim = config.mla.value_dim;
  options.norm_eps = config.mla.latent_norm_eps;
  options.score_factor = ops::rope_score_factor(rope_scaling(config.rope));
  options.bias = config.attention_bias;
  options.output_bias = config.attention_output_bias;
  options.init_std = config.init_std;
  options.out_std = config.init_std * config.output_init_scale;
  return options;
}

}  // namespace

std::unique_ptr<SelfAttention> make_attention(const config::ModelConfig& config, int64_t layer,
                                              const std::string& prefix, ParamTable& params,
                                              const TensorAxis* axis, const ContextAxis* context) {
  if (config.is_latent()) {
    LatentAttentionOptions options = latent_options(config);
    options.axis = axis;
    options.context = context;
    return std::make_unique<LatentAttention>(options, prefix, params);
  }
  AttentionOptions options = attention_options(config, layer);
  options.axis = axis;
  options.context = context;
  return std::make_unique<Attention>(options, prefix, params);
}

KvCache make_kv_cache(const config::ModelConfig& config, int64_t capacity, const at::TensorOptions& options,
                      const TensorAxis* axis, KvFormat format) {
  if (config.is_latent())
    return KvCache::of_latents(config.layers, capacity, config.mla.kv_rank + config.mla.rope_dim, options,
                               format);
  const int64_t kv_heads = config.kv_heads / place_of(axis).size / tokens_of(axis).size;
  return KvCache::of_heads(config.layers, capacity, kv_heads, config.query_dim(), options, format);
}

ops::RopeScaling rope_scaling(const config::RopeConfig& config) {
  using Kind = ops::RopeScaling::Kind;
  ops::RopeScaling scaling;
  if (config.scaling == "linear") scaling.kind = Kind::linear;
  if (config.scaling == "dynamic") scaling.kind = Kind::dynamic;
  if (config.scaling == "yarn") scaling.kind = Kind::yarn;
  if (config.scaling == "llama3") scaling.kind = Kind::llama3;
  scaling.factor = config.factor;
  scaling.original_context = config.original_context;
  scaling.beta_fast = config.beta_fast;
  scaling.beta_slow = config.beta_slow;
  scaling.mscale = config.mscale;
  scaling.mscale_all_dim = config.mscale_all_dim;
  scaling.attention_factor = config.attention_factor;
  scaling.truncate = config.truncate;
  scaling.low_freq_factor = config.low_freq_factor;
  scaling.high_freq_factor = config.high_freq_factor;
  return scaling;
}

}  // namespace moebius::nn
