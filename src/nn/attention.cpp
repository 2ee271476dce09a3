// Shapes: T tokens, D model width, H query heads, Hk key/value heads, d head width, C = (H + 2 Hk) d.
#include "nn/attention.h"

#include "ops/linear.h"

namespace moebius::nn {

Attention::Attention(const AttentionOptions& options, const std::string& prefix, ParamTable& params)
    : options_(options),
      qkv_(params.declare(
          {.name = prefix + "qkv",
           .dims = {(options.num_heads + 2 * options.num_kv_heads) * options.head_dim, options.dim},
           .sharding = {.tp = 0},
           .init = Init::normal(options.init_std)})),
      out_(params.declare({.name = prefix + "out",
                           .dims = {options.dim, options.num_heads * options.head_dim},
                           .sharding = {.tp = 1},
                           .init = Init::normal(options.out_std)})) {
  const auto small = [&](const char* name, int64_t size) {
    return &params.declare({.name = prefix + name, .dims = {size}, .init = Init::zeros(), .decays = false});
  };
  if (options.bias)
    qkv_bias_ = small("qkv_bias", (options.num_heads + 2 * options.num_kv_heads) * options.head_dim);
  if (options.output_bias) out_bias_ = small("out_bias", options.dim);
  if (options.sinks) sinks_ = small("sinks", options.num_heads);
  if (options.qk_norm == kernels::QkNorm::none) return;
  const bool full = options.qk_norm == kernels::QkNorm::full;
  const auto declare = [&](const char* name, int64_t heads) {
    return &params.declare({.name = prefix + name,
                            .dims = {full ? heads * options.head_dim : options.head_dim},
                            .klass = ParamClass::norm,
                            .init = Init::ones(),
                            .decays = false});
  };
  q_norm_ = declare("q_norm", options.num_heads);
  k_norm_ = declare("k_norm", options.num_kv_heads);
}

at::Tensor Attention::projected(const at::Tensor& x_TD) const {
  return ops::linear(x_TD, qkv_.value, value_of(qkv_bias_));
}

// Queries and keys normalised and rotated.
at::Tensor Attention::turned(const at::Tensor& projected_TC, const at::Tensor& positions_T,
                             const at::Tensor& cos_sin_PD) const {
  ops::RopeOptions rope;
  rope.num_heads = options_.num_heads;
  rope.num_kv_heads = options_.num_kv_heads;
  rope.head_dim = options_.head_dim;
  rope.norm = options_.qk_norm;
  rope.eps = options_.norm_eps;
  rope.rotary_dim = options_.rotary_dim;
  return ops::qk_norm_rope(projected_TC, value_of(q_norm_), value_of(k_norm_), positions_T, cos_sin_PD, rope);
}

ops::AttentionShape Attention::shape() const {
  ops::AttentionShape shape{options_.num_heads, options_.num_kv_heads, options_.head_dim};
  shape.window = options_.window;
  return shape;
}

at::Tensor Attention::forward(const at::Tensor& x_TD, const at::Tensor& positions_T,
                              const at::Tensor& cos_sin_PD, const ops::Segments& documents,
                              Discards* discards) const {
  const at::Tensor projected_TC = projected(x_TD);
  const at::Tensor qkv_TC = turned(projected_TC, positions_T, cos_sin_PD);
  // The norms keep what they read, so that the rest can be made from it; without them nothing else is kept.
  if (discards != nullptr && options_.qk_norm != kernels::QkNorm::none)
    discards->add(qkv_TC, [this, read = projected_TC.detach(), positions_T, cos_sin_PD] {
      return turned(read, positions_T, cos_sin_PD);
    });
  const at::Tensor y_TC = ops::attention(qkv_TC, documents, shape(), value_of(sinks_));
  return ops::linear(y_TC, out_.value, value_of(out_bias_));
}

at::Tensor Attention::forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                     const at::Tensor& cos_sin_PD, int64_t layer, KvCache& cache) const {
  const int64_t count = x_TD.size(0), heads = options_.num_heads, kv_heads = options_.num_kv_heads;
  const at::Tensor qkv_THd =
      turned(projected(x_TD), positions_T, cos_sin_PD).view({count, heads + 2 * kv_heads, options_.head_dim});
  const KvCache::KeysValues held =
      cache.append(layer, qkv_THd.narrow(1, heads, kv_heads), qkv_THd.narrow(1, heads + kv_heads, kv_heads));
  const at::Tensor y_TC = ops::attention_with_cache(qkv_THd.narrow(1, 0, heads).transpose(0, 1), held.keys,
                                                    held.values, shape(), value_of(sinks_));
  return ops::linear(y_TC, out_.value, value_of(out_bias_));
}

}  // namespace moebius::nn
