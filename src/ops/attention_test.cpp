#include "ops/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

Segments documents(const std::vector<int32_t>& lengths, at::Device device = at::kCPU) {
  Segments segments;
  segments.cu_seqlens = {0};
  for (const int32_t length : lengths) {
    segments.cu_seqlens.push_back(segments.cu_seqlens.back() + length);
    segments.max_length = std::max<int64_t>(segments.max_length, length);
  }
  segments.cu_seqlens_device = at::tensor(segments.cu_seqlens, at::kInt).to(device);
  return segments;
}

// Softmax of the whole score matrix of each document, head by head, in double precision.
at::Tensor reference(const at::Tensor& qkv_TC, const Segments& segments, const AttentionShape& shape) {
  const int64_t h = shape.num_heads, hk = shape.num_kv_heads, d = shape.head_dim;
  std::vector<at::Tensor> documents;
  for (size_t i = 0; i + 1 < segments.cu_seqlens.size(); ++i) {
    const int64_t begin = segments.cu_seqlens[i], length = segments.cu_seqlens[i + 1] - begin;
    const at::Tensor rows = qkv_TC.narrow(0, begin, length);
    const at::Tensor future = at::ones({length, length}, at::kBool).triu(1);
    std::vector<at::Tensor> heads;
    for (int64_t head = 0; head < h; ++head) {
      const int64_t kv_head = head / (h / hk);
      const at::Tensor q = rows.narrow(1, head * d, d), k = rows.narrow(1, (h + kv_head) * d, d),
                       v = rows.narrow(1, (h + hk + kv_head) * d, d);
      const at::Tensor scores = at::mm(q, k.t()) / std::sqrt(static_cast<double>(d));
      heads.push_back(
          at::mm(at::softmax(scores.masked_fill(future, -std::numeric_limits<double>::infinity()), 1), v));
    }
    documents.push_back(at::cat(heads, 1));
  }
  return at::cat(documents);
}

struct Case {
  std::vector<int32_t> lengths;
  AttentionShape shape;
};

const std::vector<Case> kCases = {
    {{1}, {1, 1, 8}},           {{33, 33, 33}, {4, 4, 32}},
    {{64, 64}, {6, 2, 64}},     {{5, 1, 70, 70, 2}, {4, 1, 16}},
    {{0, 17, 200}, {2, 2, 40}}, {{129, 300}, {3, 3, 128}},
};

double error_of(const at::Tensor& got, const at::Tensor& want) {
  return (got.to(at::kCPU, at::kDouble) - want).norm().item<double>() / want.norm().item<double>();
}

void expect_matches_reference(at::Device device, at::ScalarType dtype) {
  // Norm of the difference over norm of the reference.
  const double tolerance = dtype == at::kFloat ? 2e-6 : 1.2e-2;
  at::manual_seed(1);
  for (const Case& c : kCases) {
    const Segments segments = documents(c.lengths, device);
    const int64_t num_tokens = segments.cu_seqlens.back();
    const at::Tensor qkv =
        at::randn({num_tokens, (c.shape.num_heads + 2 * c.shape.num_kv_heads) * c.shape.head_dim}).to(dtype);
    const at::Tensor grad = at::randn({num_tokens, c.shape.num_heads * c.shape.head_dim}).to(dtype);
    const at::Tensor input = qkv.to(device).requires_grad_(true);
    const at::Tensor got = attention(input, segments, c.shape);
    const at::Tensor got_grad = torch::autograd::grad({got}, {input}, {grad.to(device)})[0];
    const at::Tensor exact = qkv.to(at::kDouble).requires_grad_(true);
    const at::Tensor want = reference(exact, segments, c.shape);
    const at::Tensor want_grad = torch::autograd::grad({want}, {exact}, {grad.to(at::kDouble)})[0];
    EXPECT_LT(error_of(got.detach(), want.detach()), tolerance) << c.lengths << c.shape.head_dim;
    EXPECT_LT(error_of(got_grad, want_grad), tolerance) << c.lengths << c.shape.head_dim;
  }
}

TEST(Attention, matches_a_double_reference) {
  expect_matches_reference(at::kCPU, at::kFloat);
  expect_matches_reference(at::kCPU, at::kBFloat16);
}

TEST(Attention, matches_a_double_reference_on_the_gpu) {
  if (cuda_plugin() == nullptr) GTEST_SKIP() << load_cuda_plugin().why;
  expect_matches_reference(at::Device(at::kCUDA, 0), at::kBFloat16);
  expect_matches_reference(at::Device(at::kCUDA, 0), at::kFloat);
}

TEST(Attention, no_document_sees_another_and_no_token_the_future) {
  at::manual_seed(2);
  for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{20, 20, 20}, {7, 33, 20}}) {
    const Segments segments = documents(lengths);
    const AttentionShape shape{4, 2, 16};
    const at::Tensor qkv = at::randn({60, 8 * 16});
    const at::Tensor before = attention(qkv, segments, shape);
    const int64_t begin = lengths[0], end = begin + lengths[1], changed = end - 3;
    at::Tensor other = qkv.clone();
    other.slice(0, changed, end).normal_();
    const at::Tensor after = attention(other, segments, shape);
    EXPECT_TRUE(at::equal(before.slice(0, 0, changed), after.slice(0, 0, changed)));
    EXPECT_TRUE(at::equal(before.slice(0, end), after.slice(0, end)));
    EXPECT_FALSE(at::equal(before.slice(0, changed, end), after.slice(0, changed, end)));
  }
}

TEST(Attention, takes_no_tokens) {
  const Segments segments = documents({});
  const at::Tensor qkv = at::zeros({0, 3 * 8}).requires_grad_(true);
  const at::Tensor out = attention(qkv, segments, {1, 1, 8});
  EXPECT_EQ(out.sizes(), (std::vector<int64_t>{0, 8}));
  EXPECT_EQ(torch::autograd::grad({out.sum()}, {qkv})[0].sizes(), qkv.sizes());
}

TEST(Attention, knows_documents_of_one_length) {
  EXPECT_EQ(documents({4, 4, 4}).uniform_length(), 4);
  EXPECT_EQ(documents({4}).uniform_length(), 4);
  EXPECT_EQ(documents({4, 5}).uniform_length(), 0);
  EXPECT_EQ(documents({}).uniform_length(), 0);
}

TEST(Attention, refuses_documents_that_do_not_cover_the_batch) {
  EXPECT_THROW(attention(at::zeros({5, 24}), documents({4}), {1, 1, 8}), InternalError);
  EXPECT_THROW(attention(at::zeros({4, 25}), documents({4}), {1, 1, 8}), InternalError);
}

}  // namespace
}  // namespace moebius::ops
