// Shapes: T tokens, D model width, H query heads, Hk key/value heads, d head width, C = (H + 2 Hk) d. With an
// axis H and Hk are those of this process in activations, and of all in declarations. On a grid of ranks the
// projections have the tokens of a line of it; for attention itself the lines exchange tokens for heads, so
// that each has all tokens of some heads (as in Jacobs et al. 2023, "DeepSpeed-Ulysses").
#include "nn/attention.h"

#include "base/check.h"
#include "nn/linear.h"

namespace moebius::nn {
namespace {

// Rows of the fused projection: query, key and value heads.
std::vector<int64_t> fused_rows(const AttentionOptions& options) {
  const int64_t queries = options.num_heads * options.head_dim,
                keys = options.num_kv_heads * options.head_dim;
  return {queries, keys, keys};
}

int64_t heads_here(int64_t heads, const TensorAxis* axis) {
  const int64_t ranks = place_of(axis).size;
  MOEBIUS_CHECK(heads % ranks == 0, heads, " heads over ", ranks, " ranks");
  return heads / ranks;
}

}  // namespace

Attention::Attention(const AttentionOptions& options, const std::string& prefix, ParamTable& params)
    : options_(options),
      num_heads_(heads_here(options.num_heads, options.axis)),
      num_kv_heads_(heads_here(options.num_kv_heads, options.axis)),
      lines_(tokens_of(options.axis).size),
      qkv_(params.declare(
          {.name = prefix + "qkv",
           .dims = {(options.num_heads + 2 * options.num_kv_heads) * options.head_dim, options.dim},
           .sharding = {.tp = 0, .grid = 1},
           .tp_parts = fused_rows(options),
           .init = Init::normal(options.init_std),
           .is_product = true})),
      out_(params.declare({.name = prefix + "out",
                           .dims = {options.dim, options.num_heads * options.head_dim},
                           .sharding = {.tp = 1, .grid = 0},
                           .init = Init::normal(options.out_std),
                           .is_product = true})) {
  MOEBIUS_CHECK(num_heads_ % lines_ == 0 && num_kv_heads_ % lines_ == 0, num_heads_, " and ", num_kv_heads_,
                " heads over ", lines_, " lines of a grid");
  const auto small = [&](const char* name, int64_t size, AxisMap sharding, std::vector<int64_t> parts = {}) {
    return &params.declare({.name = prefix + name,
                            .dims = {size},
                            .sharding = sharding,
                            .tp_parts = std::move(parts),
                            .init = Init::zeros(),
                            .decays = false});
  };
  const AxisMap by_heads{.tp = 0};
  if (options.bias) qkv_bias_ = small("qkv_bias", qkv_.spec.dims[0], by_heads, fused_rows(options));
  if (options.output_bias) out_bias_ = small("out_bias", options.dim, {.stream = 0});
  if (options.sinks) sinks_ = small("sinks", options.num_heads, by_heads);
  if (options.qk_norm == kernels::QkNorm::none) return;
  const bool full = options.qk_norm == kernels::QkNorm::full;
  MOEBIUS_CHECK(!full || place_of(options.axis).size == 1, "a norm over heads that are split");
  const auto declare = [&](const char* name, int64_t heads) {
    return &params.declare({.name = prefix + name,
                            .dims = {full ? heads * options.head_dim : options.head_dim},
                            .klass = ParamClass::norm,
                            .sharding = full ? by_heads : AxisMap{},
                            .init = Init::ones(),
                            .decays = false});
  };
  q_norm_ = declare("q_norm", options.num_heads);
  k_norm_ = declare("k_norm", options.num_kv_heads);
}

at::Tensor Attention::projected(const at::Tensor& x_TD) const {
  return first_linear(options_.axis, x_TD, qkv_, qkv_bias_);
}

// Queries and keys normalised and rotated.
at::Tensor Attention::turned(const at::Tensor& projected_TC, const at::Tensor& positions_T,
                             const at::Tensor& cos_sin_PD) const {
  ops::RopeOptions rope;
  rope.num_heads = num_heads_;
  rope.num_kv_heads = num_kv_heads_;
  rope.head_dim = options_.head_dim;
  rope.norm = options_.qk_norm;
  rope.eps = options_.norm_eps;
  rope.rotary_dim = options_.rotary_dim;
  const auto norm = [this](const Param* param) {
    return shared(options_.axis, of_lines(options_.axis, value_of(param)));
  };
  return ops::qk_norm_rope(projected_TC, norm(q_norm_), norm(k_norm_), positions_T, cos_sin_PD, rope);
}

at::Tensor Attention::mixed_inputs(const at::Tensor& turned_TC, int64_t num_tokens) const {
  if (lines_ == 1) return turned_TC;
  const int64_t queries = num_heads_ * options_.head_dim, keys = num_kv_heads_ * options_.head_dim;
  return options_.axis->to_sequences(turned_TC, {queries, keys, keys}, num_tokens);
}

at::Tensor Attention::own_sinks() const {
  if (sinks_ == nullptr || lines_ == 1) return value_of(sinks_);
  const Range heads = share_of(num_heads_, tokens_of(options_.axis));
  return of_lines(options_.axis, sinks_->value).narrow(0, heads.begin, heads.count);
}

ops::AttentionShape Attention::shape() const {
  ops::AttentionShape shape{num_heads_ / lines_, num_kv_heads_ / lines_, options_.head_dim};
  shape.window = options_.window;
  return shape;
}

at::Tensor Attention::output(const at::Tensor& y_TC, int64_t num_tokens) const {
  const at::Tensor own_TC = lines_ == 1 ? y_TC : options_.axis->from_sequences(y_TC, num_tokens);
  const at::Tensor y_TD = leave_pair(options_.axis, second_linear(options_.axis, own_TC, out_));
  return out_bias_ == nullptr ? y_TD : y_TD + outside(options_.axis, out_bias_->value);
}

at::Tensor Attention::forward(const at::Tensor& x_TD, const at::Tensor& positions_T,
                              const at::Tensor& cos_sin_PD, const ops::Segments& documents,
                              Discards* discards) const {
  const int64_t count = positions_T.size(0);
  const at::Tensor projected_TC = projected(enter_pair(options_.axis, x_TD, count, discards));
  const auto inputs = [this, own_positions_T = rows_of_line(options_.axis, positions_T), cos_sin_PD,
                       count](const at::Tensor& read_TC) {
    return mixed_inputs(turned(read_TC, own_positions_T, cos_sin_PD), count);
  };
  const at::Tensor qkv_TC = inputs(projected_TC);
  // The norms keep what they read, so that the rest can be made from it; without them nothing else is kept.
  if (discards != nullptr && options_.qk_norm != kernels::QkNorm::none)
    discards->add(qkv_TC, [inputs, read = projected_TC.detach()] { return inputs(read); });
  return output(attend(options_.context, qkv_TC, documents, shape(), own_sinks()), count);
}

at::Tensor Attention::forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                     const at::Tensor& cos_sin_PD, int64_t layer, KvCache& cache) const {
  const int64_t count = positions_T.size(0), heads = num_heads_ / lines_, kv_heads = num_kv_heads_ / lines_;
  const at::Tensor turned_TC = turned(projected(enter_pair(options_.axis, x_TD, count)),
                                      rows_of_line(options_.axis, positions_T), cos_sin_PD);
  const at::Tensor qkv_THd =
      mixed_inputs(turned_TC, count).view({count, heads + 2 * kv_heads, options_.head_dim});
  const KvCache::KeysValues held =
      cache.append(layer, qkv_THd.narrow(1, heads, kv_heads), qkv_THd.narrow(1, heads + kv_heads, kv_heads));
  const at::Tensor y_TC = ops::attention_with_cache(qkv_THd.narrow(1, 0, heads).transpose(0, 1), held.keys,
                                                    held.values, shape(), own_sinks());
  return output(y_TC, count);
}

}  // namespace moebius::nn
