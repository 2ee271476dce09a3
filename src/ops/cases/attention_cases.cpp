#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "base/concat.h"
#include "ops/attention.h"
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

// The whole score matrix of each document, head by head.
at::Tensor plain_attention(const at::Tensor& qkv_TC, const at::Tensor& cu_seqlens,
                           const AttentionShape& shape) {
  const int64_t h = shape.num_heads, hk = shape.num_kv_heads, d = shape.head_dim;
  std::vector<at::Tensor> outs{at::zeros({0, h * d}, at::kDouble)};
  for (int64_t i = 0; i + 1 < cu_seqlens.size(0); ++i) {
    const int64_t begin = cu_seqlens[i].item<int32_t>(), length = cu_seqlens[i + 1].item<int32_t>() - begin;
    const at::Tensor rows = qkv_TC.narrow(0, begin, length);
    const at::Tensor future = at::ones({length, length}, at::kBool).triu(1);
    std::vector<at::Tensor> heads;
    for (int64_t head = 0; head < h; ++head) {
      const int64_t kv_head = head / (h / hk);
      const at::Tensor q = rows.narrow(1, head * d, d), k = rows.narrow(1, (h + kv_head) * d, d),
                       v = rows.narrow(1, (h + hk + kv_head) * d, d);
      const at::Tensor scores = at::mm(q, k.t()) / std::sqrt(static_cast<double>(d));
      const at::Tensor seen = scores.masked_fill(future, -std::numeric_limits<double>::infinity());
      heads.push_back(at::mm(at::softmax(seen, 1), v));
    }
    outs.push_back(at::cat(heads, 1));
  }
  return at::cat(outs);
}

Example attention_example(const Lengths& lengths, const AttentionShape& shape) {
  const Segments segments = documents(lengths, {});
  const int64_t num_tokens = segments.cu_seqlens.back();
  const int64_t columns = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
  return {{{"qkv", at::randn({num_tokens, columns}, at::kDouble)},
           {"cu_seqlens", at::tensor(segments.cu_seqlens, at::kInt), InputKind::index}},
          [=](const Tensors& in) {
            return Outputs{{"out", attention(in[0], documents(lengths, in[1]), shape)}};
          },
          [=](const Tensors& in) {
            return Outputs{{"out", plain_attention(in[0], in[1], shape)}};
          }};
}

}  // namespace

void add_attention_cases(CaseList& cases) {
  struct Row {
    std::string name;
    Lengths lengths;
    AttentionShape shape;
    Size size = Size::small;
  };
  const auto same = [](int64_t count, int32_t length) { return Lengths(static_cast<size_t>(count), length); };
  const std::vector<Row> rows{
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
  for (const Row& row : rows) {
    double forward = 0;  // two products over the lower triangle
    for (const int32_t length : row.lengths) forward += 2.0 * static_cast<double>(length) * length;
    forward *= static_cast<double>(row.shape.num_heads * row.shape.head_dim);
    cases.push_back({.name = "attention/" + row.name,
                     .op_class = OpClass::chain,
                     .work = {Work::Unit::flops, forward, 2.5 * forward},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return attention_example(row.lengths, row.shape); }});
  }
}

}  // namespace moebius::ops::cases
