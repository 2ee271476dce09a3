// Shapes: T tokens, N tokens in the cache and new ones, D model width, R latent of keys and values, H heads,
// n channels without and r with position, e value channels. With an axis H is this process's share in
// activations and all of them in declarations; latents are made by every rank alike.
#include "nn/latent_attention.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>

#include <cmath>

#include "base/check.h"
#include "nn/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace moebius::nn {

LatentAttention::LatentAttention(const LatentAttentionOptions& options, const std::string& prefix,
                                 ParamTable& params)
    : options_(options), num_heads_(options.num_heads / place_of(options.axis).size) {
  MOEBIUS_CHECK_EQ(num_heads_ * place_of(options.axis).size, options.num_heads);
  const int64_t query_width = options.num_heads * (options.nope_dim + options.rope_dim);
  const auto product = [&](const char* name, int64_t rows, int64_t columns, AxisMap sharding, double std) {
    return &params.declare({.name = prefix + name,
                            .dims = {rows, columns},
                            .sharding = sharding,
                            .init = Init::normal(std),
                            .is_product = true});
  };
  const auto norm = [&](const char* name, int64_t width) {
    return &params.declare({.name = prefix + name,
                            .dims = {width},
                            .klass = ParamClass::norm,
                            .init = Init::ones(),
                            .decays = false});
  };
  const auto bias = [&](const char* name, int64_t width) {
    return &params.declare({.name = prefix + name, .dims = {width}, .init = Init::zeros(), .decays = false});
  };
  const AxisMap by_heads{.tp = 0};
  if (options.q_rank == 0) {
    q_ = product("q", query_width, options.dim, by_heads, options.init_std);
  } else {
    q_down_ = product("q_down", options.q_rank, options.dim, {}, options.init_std);
    if (options.bias) q_down_bias_ = bias("q_down_bias", options.q_rank);
    q_down_norm_ = norm("q_down_norm", options.q_rank);
    q_up_ = product("q_up", query_width, options.q_rank, by_heads, options.init_std);
  }
  kv_down_ = product("kv_down", options.kv_rank + options.rope_dim, options.dim, {}, options.init_std);
  if (options.bias) kv_down_bias_ = bias("kv_down_bias", options.kv_rank + options.rope_dim);
  kv_norm_ = norm("kv_norm", options.kv_rank);
  kv_up_ = product("kv_up", options.num_heads * (options.nope_dim + options.value_dim), options.kv_rank,
                   by_heads, options.init_std);
  out_ =
      product("out", options.dim, options.num_heads * options.value_dim, AxisMap{.tp = 1}, options.out_std);
  if (options.output_bias) out_bias_ = bias("out_bias", options.dim);
}

LatentAttention::Queries LatentAttention::queries(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                                  const at::Tensor& cos_sin_PD) const {
  at::Tensor q_TC;
  if (q_ != nullptr) {
    q_TC = linear(x_TD, *q_);
  } else {
    const at::Tensor down = linear(alike(options_.axis, x_TD), *q_down_, q_down_bias_);
    const at::Tensor latent = ops::rms_norm(down, q_down_norm_->value, options_.norm_eps);
    q_TC = linear(shared(options_.axis, latent), *q_up_);
  }
  const at::Tensor q_THd = q_TC.unflatten(1, {num_heads_, options_.nope_dim + options_.rope_dim});
  return {q_THd.narrow(2, 0, options_.nope_dim),
          ops::rotate(q_THd.narrow(2, options_.nope_dim, options_.rope_dim), positions_T, cos_sin_PD)};
}

LatentAttention::Latents LatentAttention::latents(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                                  const at::Tensor& cos_sin_PD) const {
  const at::Tensor kv = linear(alike(options_.axis, x_TD), *kv_down_, kv_down_bias_);
  const at::Tensor latent = kv.narrow(1, 0, options_.kv_rank).contiguous();
  const at::Tensor rope_key = kv.narrow(1, options_.kv_rank, options_.rope_dim).unsqueeze(1);
  return {shared(options_.axis, ops::rms_norm(latent, kv_norm_->value, options_.norm_eps)),
          shared(options_.axis, ops::rotate(rope_key, positions_T, cos_sin_PD))};
}

double LatentAttention::scale() const {
  if (options_.score_factor == 1.0) return 0.0;
  return options_.score_factor / std::sqrt(static_cast<double>(options_.nope_dim + options_.rope_dim));
}

at::Tensor LatentAttention::output(const at::Tensor& y_TC) const {
  const at::Tensor y_TD = leave(options_.axis, linear(y_TC, *out_));
  return out_bias_ == nullptr ? y_TD : y_TD + outside(options_.axis, out_bias_->value);
}

at::Tensor LatentAttention::expanded(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                     const at::Tensor& cos_sin_PD) const {
  const int64_t heads = num_heads_, n = options_.nope_dim, e = options_.value_dim;
  const Queries q = queries(x_TD, positions_T, cos_sin_PD);
  const Latents kv = latents(x_TD, positions_T, cos_sin_PD);
  const at::Tensor expanded_THc = linear(kv.latent_TR, *kv_up_).unflatten(1, {heads, n + e});
  const at::Tensor q_TC = at::cat({q.nope_THn, q.rope_THr}, 2).flatten(1);
  const at::Tensor k_TC =
      at::cat({expanded_THc.narrow(2, 0, n), kv.rope_T1r.expand({-1, heads, -1})}, 2).flatten(1);
  return at::cat({q_TC, k_TC, expanded_THc.narrow(2, n, e).flatten(1)}, 1);
}

at::Tensor LatentAttention::forward(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                    const at::Tensor& cos_sin_PD, const ops::Segments& documents,
                                    Discards* /*discards*/) const {
  ops::AttentionShape shape{num_heads_, num_heads_, options_.nope_dim + options_.rope_dim,
                            options_.value_dim};
  shape.scale = scale();
  const at::Tensor in_TD = enter(options_.axis, x_TD, positions_T.size(0));
  return output(attend(options_.context, expanded(in_TD, positions_T, cos_sin_PD), documents, shape));
}

at::Tensor LatentAttention::forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                           const at::Tensor& cos_sin_PD, int64_t layer,
                                           KvCache& cache) const {
  const int64_t heads = num_heads_, n = options_.nope_dim, r = options_.rope_dim, e = options_.value_dim,
                rank = options_.kv_rank;
  const at::Tensor in_TD = enter(options_.axis, x_TD, positions_T.size(0));
  const Queries q = queries(in_TD, positions_T, cos_sin_PD);
  const Latents kv = latents(in_TD, positions_T, cos_sin_PD);
  const at::Tensor keys_NW = cache.append_latents(layer, at::cat({kv.latent_TR, kv.rope_T1r.squeeze(1)}, 1));
  const at::Tensor up_HcR = product_values(*kv_up_).unflatten(0, {heads, n + e});
  const at::Tensor absorbed_HTR = at::bmm(q.nope_THn.transpose(0, 1), up_HcR.narrow(1, 0, n));
  const at::Tensor q_HTW = at::cat({absorbed_HTR, q.rope_THr.transpose(0, 1)}, 2);
  // All heads read the one key of a token, whose first part is its value.
  ops::AttentionShape shape{heads, 1, rank + r, rank};
  shape.scale = scale() > 0 ? scale() : 1.0 / std::sqrt(static_cast<double>(n + r));
  const at::Tensor y_TC =
      ops::attention_with_cache(q_HTW, keys_NW.unsqueeze(0), keys_NW.narrow(1, 0, rank).unsqueeze(0), shape);
  const at::Tensor y_HTR = y_TC.unflatten(1, {heads, rank}).transpose(0, 1);
  const at::Tensor y_HTe = at::bmm(y_HTR, up_HcR.narrow(1, n, e).transpose(1, 2));
  return output(y_HTe.transpose(0, 1).flatten(1));
}

}  // namespace moebius::nn
