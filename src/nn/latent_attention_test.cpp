#include "nn/latent_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nn/layer_check.h"
#include "ops/rope.h"

namespace moebius::nn {
namespace {

at::Tensor plus_bias(const at::Tensor& x, const CheckedParams& p, const std::string& name) {
  return p.has(name) ? x + p[name] : x;
}

// The layer in double precision, from the equations of the paper.
at::Tensor plain(const CheckedParams& p, const LatentAttentionOptions& o, const at::Tensor& x,
                 const std::vector<int32_t>& lengths) {
  const int64_t count = x.size(0), n = o.nope_dim, r = o.rope_dim;
  at::Tensor q;
  if (o.q_rank == 0) {
    q = at::mm(x, p["q"].t());
  } else {
    const at::Tensor down = plus_bias(at::mm(x, p["q_down"].t()), p, "q_down_bias");
    q = at::mm(plain_norm(down, p["q_down_norm"], o.norm_eps), p["q_up"].t());
  }
  q = q.view({count, o.num_heads, n + r});
  const at::Tensor down = plus_bias(at::mm(x, p["kv_down"].t()), p, "kv_down_bias");
  const at::Tensor latent = plain_norm(down.slice(1, 0, o.kv_rank), p["kv_norm"], o.norm_eps);
  const at::Tensor up = at::mm(latent, p["kv_up"].t()).view({count, o.num_heads, n + o.value_dim});
  const at::Tensor angles = plain_angles(positions_of(lengths), r, kCheckedTheta);
  const at::Tensor rope_key = plain_rotation(down.slice(1, o.kv_rank).unsqueeze(1), angles);
  std::vector<at::Tensor> keys;
  for (int64_t h = 0; h < o.num_heads; ++h)
    keys.push_back(at::cat({up.select(1, h).slice(1, 0, n), rope_key.select(1, 0)}, 1));
  const at::Tensor queries = at::cat({q.slice(2, 0, n), plain_rotation(q.slice(2, n), angles)}, 2);
  const PlainScores scores{o.score_factor / std::sqrt(static_cast<double>(n + r))};
  const at::Tensor y = plain_attention(queries, at::stack(keys, 1), up.slice(2, n), lengths, scores);
  return plus_bias(at::mm(y, p["out"].t()), p, "out_bias");
}

LatentAttentionOptions small_latent() {
  LatentAttentionOptions options;
  options.dim = 20;
  options.num_heads = 3;
  options.q_rank = 0;
  options.kv_rank = 10;
  options.nope_dim = 8;
  options.rope_dim = 4;
  options.value_dim = 6;
  return options;
}

std::vector<LatentAttentionOptions> latent_forms() {
  LatentAttentionOptions compressed = small_latent(), biased = small_latent();
  compressed.q_rank = 14;
  biased.q_rank = 14;
  biased.bias = biased.output_bias = true;
  biased.score_factor = 1.4;
  biased.value_dim = 16;  // more than a query has
  return {small_latent(), compressed, biased};
}

TEST(LatentAttention, agrees_with_its_definition) {
  const std::vector<int32_t> lengths{7, 1, 17};
  for (const LatentAttentionOptions& options : latent_forms()) {
    CheckedParams params;
    const LatentAttention layer(options, "", params.table);
    params.fill();
    const CheckedInput in({25, options.dim});
    const at::Tensor y = layer.forward(in.x, positions_of(lengths),
                                       ops::rope_table(17, options.rope_dim, kCheckedTheta, at::kCPU),
                                       segments_of(lengths), nullptr);
    params.expect_close(y, plain(params, options, in.exact, lengths), in.x, in.exact);
  }
}

TEST(LatentAttention, the_absorbed_form_gives_what_the_expanded_one_gives) {
  for (const LatentAttentionOptions& options : latent_forms()) {
    CheckedParams params;
    const LatentAttention layer(options, "", params.table);
    params.fill();
    const at::NoGradGuard no_grad;
    const at::Tensor x = at::randn({13, options.dim}), positions = positions_of({13});
    const at::Tensor table = ops::rope_table(13, options.rope_dim, kCheckedTheta, at::kCPU);
    const at::Tensor whole = layer.forward(x, positions, table, segments_of({13}), nullptr);
    KvCache cache = KvCache::of_latents(1, 13, options.kv_rank + options.rope_dim, x.options());
    EXPECT_EQ(cache.num_bytes(), 13 * 14 * 4);
    int64_t begin = 0;
    for (const int64_t count : {5, 1, 3, 1, 1, 2}) {
      const at::Tensor y =
          layer.forward_cached(x.narrow(0, begin, count), positions.narrow(0, begin, count), table, 0, cache);
      cache.advance(count);
      CheckedParams::close("tokens from " + std::to_string(begin), y, whole.narrow(0, begin, count));
      begin += count;
    }
  }
}

}  // namespace
}  // namespace moebius::nn
