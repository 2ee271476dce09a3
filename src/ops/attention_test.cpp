#include "ops/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "base/check.h"
#include "base/parallel.h"

namespace moebius::ops {
namespace {

Segments documents(const std::vector<int32_t>& lengths) {
  Segments segments;
  segments.cu_seqlens = {0};
  for (const int32_t length : lengths) {
    segments.cu_seqlens.push_back(segments.cu_seqlens.back() + length);
    segments.max_length = std::max<int64_t>(segments.max_length, length);
  }
  return segments;
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

TEST(Attention, does_not_depend_on_the_number_of_threads) {
  at::manual_seed(3);
  const Segments segments = documents({90, 200, 7});
  const int before = num_threads();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = at::randn({297, 8 * 32}).to(dtype).requires_grad_(true);
    std::vector<at::Tensor> outs, grads;
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      outs.push_back(attention(qkv, segments, {4, 2, 32}));
      grads.push_back(torch::autograd::grad({outs.back()}, {qkv}, {outs.front().detach()})[0]);
    }
    set_num_threads(before);
    EXPECT_TRUE(at::equal(outs[0], outs[1]));
    EXPECT_TRUE(at::equal(grads[0], grads[1]));
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
