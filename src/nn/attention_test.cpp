#include "nn/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nn/layer_check.h"

namespace moebius::nn {
namespace {

// The layer in double precision, from its definition.
at::Tensor plain(const CheckedParams& p, const AttentionOptions& o, const at::Tensor& x,
                 const std::vector<int32_t>& lengths) {
  at::Tensor qkv = at::mm(x, p["qkv"].t());
  if (o.bias) qkv = qkv + p["qkv_bias"];
  const at::Tensor heads = qkv.view({x.size(0), -1, o.head_dim});
  at::Tensor q = heads.slice(1, 0, o.num_heads),
             k = heads.slice(1, o.num_heads, o.num_heads + o.num_kv_heads);
  const at::Tensor v = heads.slice(1, o.num_heads + o.num_kv_heads);
  if (o.qk_norm == kernels::QkNorm::head) {
    q = plain_norm(q, p["q_norm"], o.norm_eps);
    k = plain_norm(k, p["k_norm"], o.norm_eps);
  }
  const at::Tensor angles =
      plain_angles(positions_of(lengths), o.rotary_dim > 0 ? o.rotary_dim : o.head_dim, kCheckedTheta);
  const PlainScores scores{1 / std::sqrt(static_cast<double>(o.head_dim)), o.window,
                           o.sinks ? p["sinks"] : at::Tensor()};
  const at::Tensor y =
      plain_attention(plain_rotation(q, angles), plain_rotation(k, angles), v, lengths, scores);
  const at::Tensor out = at::mm(y, p["out"].t());
  return o.output_bias ? out + p["out_bias"] : out;
}

AttentionOptions small_attention() {
  AttentionOptions options;
  options.dim = 20;
  options.num_heads = 4;
  options.num_kv_heads = 2;
  options.head_dim = 12;
  return options;
}

struct AttentionCase {
  std::string name;
  AttentionOptions options;
};

std::vector<AttentionCase> attention_cases() {
  std::vector<AttentionCase> all{{"plain", small_attention()}};
  const auto add = [&](const std::string& name, auto change) {
    all.push_back({name, small_attention()});
    change(all.back().options);
  };
  add("biases", [](AttentionOptions& o) { o.bias = o.output_bias = true; });
  add("sinks_and_window", [](AttentionOptions& o) {
    o.sinks = true;
    o.window = 3;
  });
  add("half_rotated_with_norms", [](AttentionOptions& o) {
    o.rotary_dim = 6;
    o.qk_norm = kernels::QkNorm::head;
  });
  add("everything", [](AttentionOptions& o) {
    o.bias = o.output_bias = o.sinks = true;
    o.window = 4;
    o.rotary_dim = 4;
    o.qk_norm = kernels::QkNorm::head;
  });
  return all;
}

TEST(Attention, agrees_with_its_definition) {
  const std::vector<int32_t> lengths{7, 1, 17};
  for (const AttentionCase& each : attention_cases()) {
    SCOPED_TRACE(each.name);
    CheckedParams params;
    const Attention layer(each.options, "", params.table);
    params.fill();
    const CheckedInput in({25, each.options.dim});
    const int64_t turned = each.options.rotary_dim > 0 ? each.options.rotary_dim : each.options.head_dim;
    const at::Tensor y =
        layer.forward(in.x, positions_of(lengths), ops::rope_table(17, turned, kCheckedTheta, at::kCPU),
                      segments_of(lengths), nullptr);
    params.expect_close(y, plain(params, each.options, in.exact, lengths), in.x, in.exact);
  }
}

TEST(Attention, the_cache_gives_what_a_whole_pass_gives) {
  for (const AttentionCase& each : attention_cases()) {
    SCOPED_TRACE(each.name);
    CheckedParams params;
    const Attention layer(each.options, "", params.table);
    params.fill();
    const at::NoGradGuard no_grad;
    const at::Tensor x = at::randn({13, each.options.dim});
    const int64_t turned = each.options.rotary_dim > 0 ? each.options.rotary_dim : each.options.head_dim;
    const at::Tensor table = ops::rope_table(13, turned, kCheckedTheta, at::kCPU);
    const at::Tensor whole = layer.forward(x, positions_of({13}), table, segments_of({13}), nullptr);
    KvCache cache = KvCache::of_heads(1, 13, each.options.num_kv_heads, each.options.head_dim, x.options());
    int64_t begin = 0;
    for (const int64_t count : {5, 1, 3, 1, 1, 2}) {
      const at::Tensor y = layer.forward_cached(x.narrow(0, begin, count),
                                                positions_of({13}).narrow(0, begin, count), table, 0, cache);
      cache.advance(count);
      CheckedParams::close("tokens from " + std::to_string(begin), y, whole.narrow(0, begin, count));
      begin += count;
    }
  }
}

}  // namespace
}  // namespace moebius::nn
