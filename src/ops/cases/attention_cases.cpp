#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "base/concat.h"
#include "ops/attention.h"
#include "ops/attention_blocks.h"
#include "ops/cases/case.h"

namespace moebius::ops::cases {
namespace {

using Lengths = std::vector<int32_t>;

Segments documents(const Lengths& lengths, const at::Tensor& cu_seqlens_device) {
  Segments segments;
  segments.cu_seqlens = {0};
  for (const int32_t length : lengths) {
    segments.cu_seqlens.push_back(segments.cu_seqlens.back() + length);
    segments.max_length = std::max<int64_t>(segments.max_length, length);
  }
  segments.cu_seqlens_device = cu_seqlens_device;
  return segments;
}

double scale_of(const AttentionShape& shape) {
  return shape.scale > 0 ? shape.scale : 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
}

// Softmax over the scores that a query sees, and the sink beside them.
at::Tensor plain_weights(const at::Tensor& scores, const AttentionShape& shape, const at::Tensor& sink) {
  const int64_t queries = scores.size(0), keys = scores.size(1);
  const at::Tensor query = at::arange(keys - queries, keys).unsqueeze(1), key = at::arange(keys);
  at::Tensor hidden = key.gt(query);
  if (shape.window > 0) hidden = hidden.logical_or(key.le(query - shape.window));
  const at::Tensor seen = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  if (!sink.defined()) return at::softmax(seen, 1);
  return at::softmax(at::cat({seen, sink.expand({queries, 1})}, 1), 1).narrow(1, 0, keys);
}

// The whole score matrix of each document, head by head.
at::Tensor plain_attention(const at::Tensor& qkv_TC, const at::Tensor& cu_seqlens,
                           const AttentionShape& shape, const at::Tensor& sinks) {
  const int64_t h = shape.num_heads, hk = shape.num_kv_heads, d = shape.head_dim, e = shape.value_width();
  std::vector<at::Tensor> outs{at::zeros({0, h * e}, at::kDouble)};
  for (int64_t i = 0; i + 1 < cu_seqlens.size(0); ++i) {
    const int64_t begin = cu_seqlens[i].item<int32_t>(), length = cu_seqlens[i + 1].item<int32_t>() - begin;
    const at::Tensor rows = qkv_TC.narrow(0, begin, length);
    std::vector<at::Tensor> heads;
    for (int64_t head = 0; head < h; ++head) {
      const int64_t kv_head = head / (h / hk);
      const at::Tensor q = rows.narrow(1, head * d, d), k = rows.narrow(1, (h + kv_head) * d, d),
                       v = rows.narrow(1, (h + hk) * d + kv_head * e, e);
      const at::Tensor sink = sinks.defined() ? sinks.narrow(0, head, 1) : at::Tensor();
      heads.push_back(at::mm(plain_weights(at::mm(q, k.t()) * scale_of(shape), shape, sink), v));
    }
    outs.push_back(at::cat(heads, 1));
  }
  return at::cat(outs);
}

enum class Form : uint8_t { chosen, blocks };  // by device, or by libtorch's operators in small blocks

struct AttentionRow {
  std::string name;
  Lengths lengths;
  AttentionShape shape;
  Size size = Size::small;
  bool sinks = false;
  Form form = Form::chosen;
};

Example attention_example(const AttentionRow& row) {
  const Segments segments = documents(row.lengths, {});
  const int64_t num_tokens = segments.cu_seqlens.back();
  std::vector<Input> inputs{{"qkv", at::randn({num_tokens, row.shape.row_width()}, at::kDouble)},
                            {"cu_seqlens", at::tensor(segments.cu_seqlens, at::kInt), InputKind::index}};
  if (row.sinks) inputs.push_back({"sinks", at::randn({row.shape.num_heads}, at::kDouble)});
  return {
      inputs,
      [=](const Tensors& in) {
        const Segments borders = documents(row.lengths, in[1]);
        const at::Tensor sinks = row.sinks ? in[2] : at::Tensor();
        constexpr int64_t kSmallBlock = 40000;
        return Outputs{{"out", row.form == Form::blocks
                                   ? attention_in_blocks(in[0], borders, row.shape, sinks, kSmallBlock)
                                   : attention(in[0], borders, row.shape, sinks)}};
      },
      [=](const Tensors& in) {
        return Outputs{{"out", plain_attention(in[0], in[1], row.shape, row.sinks ? in[2] : at::Tensor())}};
      }};
}

// The last `count` positions of `all`.
Example cached_example(int64_t count, int64_t all, const AttentionShape& shape, bool with_sinks) {
  const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); };
  const InputKind kind = InputKind::typed_constant;
  std::vector<Input> inputs{{"q", random({shape.num_heads, count, shape.head_dim}), kind},
                            {"keys", random({shape.num_kv_heads, all, shape.head_dim}), kind},
                            {"values", random({shape.num_kv_heads, all, shape.value_width()}), kind}};
  if (with_sinks) inputs.push_back({"sinks", random({shape.num_heads}), kind});
  return {inputs,
          [=](const Tensors& in) {
            return Outputs{
                {"out", attention_with_cache(in[0], in[1], in[2], shape, with_sinks ? in[3] : at::Tensor())}};
          },
          [=](const Tensors& in) {
            std::vector<at::Tensor> heads;
            for (int64_t head = 0; head < shape.num_heads; ++head) {
              const int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
              const at::Tensor sink = with_sinks ? in[3].narrow(0, head, 1) : at::Tensor();
              const at::Tensor scores = at::mm(in[0][head], in[1][kv_head].t()) * scale_of(shape);
              heads.push_back(at::mm(plain_weights(scores, shape, sink), in[2][kv_head]));
            }
            return Outputs{{"out", at::cat(heads, 1)}};
          }};
}

void add_cached_cases(CaseList& cases) {
  struct Cached {
    std::string name;
    int64_t count, all;
    AttentionShape shape;
    bool sinks = false;
  };
  const std::vector<Cached> rows{
      {"t1_n9_h4k2_d16", 1, 9, {4, 2, 16}},
      {"t7_n7_h4k4_d16", 7, 7, {4, 4, 16}},
      {"t3_n20_h4k2_d16_e8", 3, 20, {4, 2, 16, 8}},
      {"t1_n20_h4k2_d16_window6", 1, 20, {4, 2, 16, 0, 6}},
      {"t5_n20_h4k2_d16_window6_scale", 5, 20, {4, 2, 16, 0, 6, 0.4}},
      {"t9_n9_h2k2_d16_window3", 9, 9, {2, 2, 16, 0, 3}},
      {"t1_n20_h4k2_d16_sinks", 1, 20, {4, 2, 16}, true},
      {"t5_n20_h6k2_d16_e24_window6_sinks", 5, 20, {6, 2, 16, 24, 6}, true},
  };
  for (const Cached& row : rows) {
    const double scores = static_cast<double>(row.count * row.all * row.shape.num_heads);
    cases.push_back({.name = "attention_with_cache/" + row.name,
                     .op_class = OpClass::chain,
                     .work = {Work::Unit::flops,
                              2 * scores * static_cast<double>(row.shape.head_dim + row.shape.value_width())},
                     .dtypes = both_dtypes(),
                     .make = [row] { return cached_example(row.count, row.all, row.shape, row.sinks); }});
  }
}

}  // namespace

void add_attention_cases(CaseList& cases) {
  const auto same = [](int64_t count, int32_t length) { return Lengths(static_cast<size_t>(count), length); };
  const std::vector<AttentionRow> rows{
      {"one_token", {1}, {1, 1, 8}},
      {"b3_s33_h4k4_d32", same(3, 33), {4, 4, 32}},
      {"b2_s64_h6k2_d64", same(2, 64), {6, 2, 64}},
      {"b2_s130_h2k1_d128", same(2, 130), {2, 1, 128}},
      {"b4_s1_h4k2_d16", same(4, 1), {4, 2, 16}},
      {"b2_s70_h3k1_d20", same(2, 70), {3, 1, 20}},
      {"uneven_h4k1_d16", {5, 1, 70, 70, 2}, {4, 1, 16}},
      {"empty_document_h2k2_d40", {0, 17, 200, 0}, {2, 2, 40}},
      {"uneven_h3k3_d128", {129, 300}, {3, 3, 128}},
      {"uneven_h4k2_d32", {31, 64, 257, 1, 8}, {4, 2, 32}},
      {"b3_s70_h4k2_d32_window1", same(3, 70), {4, 2, 32, 0, 1}},
      {"uneven_h4k2_d32_window40", {31, 64, 257, 1, 8, 40, 41}, {4, 2, 32, 0, 40}},
      {"uneven_h4k2_d20_window100_sinks", {31, 257, 0, 8}, {4, 2, 20, 0, 100}, Size::small, true},
      {"b2_s130_h4k4_d24_e12_scale", same(2, 130), {4, 4, 24, 12, 0, 0.3}},
      {"uneven_h3k1_d16_e40_window17_scale_sinks", {90, 3, 33}, {3, 1, 16, 40, 17, 0.3}, Size::small, true},
      {"b3_s33_h4k2_d16_sinks", same(3, 33), {4, 2, 16}, Size::small, true},
      {"blocks_b3_s33_h4k4_d32", same(3, 33), {4, 4, 32}, Size::small, false, Form::blocks},
      {"blocks_uneven_h4k2_d32_window40_sinks",
       {31, 64, 640, 1},
       {4, 2, 32, 0, 40},
       Size::small,
       true,
       Form::blocks},
      {"blocks_b2_s130_h6k2_d24_e12_scale",
       same(2, 130),
       {6, 2, 24, 12, 0, 0.3},
       Size::small,
       false,
       Form::blocks},
      {"b8_s256_h4k4_d32", same(8, 256), {4, 4, 32}, Size::bench},
      {"b8_s256_h4k2_d32", same(8, 256), {4, 2, 32}, Size::bench},
      {"b8_s512_h6k6_d64", same(8, 512), {6, 6, 64}, Size::bench},
      {"b8_s512_h6k2_d64", same(8, 512), {6, 2, 64}, Size::bench},
      {"b8_s512_h12k4_d32", same(8, 512), {12, 4, 32}, Size::bench},
      {"b4_s4096_h16k16_d128", same(4, 4096), {16, 16, 128}, Size::large},
      {"b4_s4096_h32k4_d128", same(4, 4096), {32, 4, 128}, Size::large},
      {"b4_s4096_h32k8_d128", same(4, 4096), {32, 8, 128}, Size::large},
      {"uneven_16384_h32k8_d128", {8000, 4000, 3000, 1384}, {32, 8, 128}, Size::large},
  };
  for (const AttentionRow& row : rows) {
    double forward = 0;  // two products over the lower triangle
    for (const int32_t length : row.lengths) forward += 2.0 * static_cast<double>(length) * length;
    forward *= static_cast<double>(row.shape.num_heads * (row.shape.head_dim + row.shape.value_width())) / 2;
    cases.push_back({.name = "attention/" + row.name,
                     .op_class = OpClass::chain,
                     .work = {Work::Unit::flops, forward, 2.5 * forward},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return attention_example(row); }});
  }
  add_cached_cases(cases);
}

}  // namespace moebius::ops::cases
