// Attention to keys that come part by part, by the CPU's kernel and by libtorch's operators, against
// attention to all of them.
#include "ops/attention_part.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "base/check.h"
#include "base/concat.h"
#include "base/parallel.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

std::vector<at::Device> devices() {
  std::vector<at::Device> all{at::Device(at::kCPU)};
  if (cuda_plugin() != nullptr) all.emplace_back(at::kCUDA, 0);
  return all;
}

void expect_close(const at::Tensor& got, const at::Tensor& want, at::ScalarType dtype, const char* what) {
  EXPECT_LE(cases::normalised_error(got.to(at::kCPU, at::kDouble), want.to(at::kDouble)),
            cases::tolerance(cases::OpClass::chain, dtype))
      << what;
}

struct Parts {
  at::Tensor out, grad_qkv, grad_sinks;
};

// One document and keys in parts [borders[i], borders[i + 1]), the last of them first.
Parts in_parts(const at::Tensor& qkv, const at::Tensor& sinks, const at::Tensor& grad_out,
               const std::vector<int64_t>& borders, const AttentionShape& shape, bool by_blocks) {
  constexpr int64_t kScoreBytes = 4000;  // blocks of few queries
  const int64_t num_tokens = qkv.size(0), width = shape.num_heads * shape.head_dim;
  const at::Tensor keys = keys_and_values(qkv, shape);
  AttentionSums sums = begin_attention(qkv, shape, sinks);
  const auto each_part = [&](const auto& visit) {
    for (size_t i = borders.size() - 1; i > 0; --i) {
      const int64_t begin = borders[i - 1], end = borders[i];
      AttentionPieces pieces;
      // Queries before the part see nothing of it; those of the part and those behind it are two runs.
      if (begin < end) pieces.push_back({begin, end, 0, end - begin, 1, 0});
      if (begin < end && end < num_tokens)
        pieces.push_back({end, num_tokens, 0, end - begin, end - begin + 1, 0});
      visit(keys.narrow(0, begin, end - begin).contiguous(), pieces, begin, end - begin);
    }
  };
  // The runs of two parts are not the same, as those of one call must be; calls may differ.
  each_part([&](const at::Tensor& part, const AttentionPieces& pieces, int64_t, int64_t) {
    by_blocks ? blocks::attend_to_part(qkv, part, pieces, shape, sums, kScoreBytes)
              : attend_to_part(qkv, part, pieces, shape, sums);
  });
  Parts result;
  result.out = sums.out_TC.to(qkv.scalar_type());
  const at::TensorOptions fp32 = sums.lse_HT.options();
  const at::Tensor grad_q = at::zeros({num_tokens, width}, fp32), grad_keys = at::zeros(keys.sizes(), fp32);
  each_part([&](const at::Tensor& part, const AttentionPieces& pieces, int64_t begin, int64_t count) {
    const at::Tensor grad = grad_keys.narrow(0, begin, count);
    by_blocks ? blocks::attend_to_part_backward(qkv, part, pieces, shape, result.out, sums, grad_out, grad_q,
                                                grad, kScoreBytes)
              : attend_to_part_backward(qkv, part, pieces, shape, result.out, sums, grad_out, grad_q, grad);
  });
  result.grad_qkv = at::cat({grad_q, grad_keys}, 1);
  if (sinks.defined()) result.grad_sinks = sinks_gradient(sinks, result.out, sums.lse_HT, grad_out);
  return result;
}

TEST(AttentionPart, of_all_parts_is_attention) {
  at::manual_seed(11);
  struct Case {
    int64_t num_tokens;
    std::vector<int64_t> borders;
    AttentionShape shape;
    bool sinks;
  };
  const std::vector<Case> all{{1, {0, 1}, {1, 1, 8}, false},
                              {70, {0, 70}, {4, 2, 16}, true},
                              {90, {0, 1, 40, 40, 89, 90}, {4, 2, 16}, false},
                              {200, {0, 130, 200}, {3, 1, 20, 12}, true},
                              {150, {0, 50, 100, 150}, {2, 2, 24, 0, 30}, false},
                              {150, {0, 20, 150}, {6, 2, 8, 16, 7, 0.4}, true}};
  for (const Case& each : all)
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(each.num_tokens);
      const at::Tensor qkv = at::randn({each.num_tokens, each.shape.row_width()}).to(dtype),
                       grad_out = at::randn({each.num_tokens, each.shape.out_width()}).to(dtype);
      at::Tensor sinks, whole_sinks;
      if (each.sinks) {
        sinks = at::randn({each.shape.num_heads});
        whole_sinks = sinks.clone().requires_grad_(true);
      }
      const at::Tensor whole = qkv.to(at::kFloat).requires_grad_(true);
      Segments segments;
      segments.cu_seqlens = {0, static_cast<int32_t>(each.num_tokens)};
      segments.max_length = each.num_tokens;
      const at::Tensor out = attention(whole, segments, each.shape, whole_sinks);
      out.backward(grad_out.to(at::kFloat));
      for (const at::Device device : devices())
        for (const bool by_blocks : {false, true}) {
          SCOPED_TRACE(concat(device.str(), by_blocks ? " in blocks" : ""));
          const Parts got = in_parts(qkv.to(device), sinks.defined() ? sinks.to(device) : sinks,
                                     grad_out.to(device), each.borders, each.shape, by_blocks);
          expect_close(got.out, out, dtype, "out");
          expect_close(got.grad_qkv, whole.grad(), dtype, "gradient");
          if (each.sinks) expect_close(got.grad_sinks, whole_sinks.grad(), dtype, "gradient of the sinks");
        }
    }
}

TEST(AttentionPart, does_not_depend_on_the_number_of_threads) {
  at::manual_seed(12);
  const AttentionShape shape{4, 2, 32};
  const at::Tensor qkv = at::randn({300, shape.row_width()}), grad_out = at::randn({300, shape.out_width()});
  const int before = num_threads();
  std::vector<Parts> results;
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    results.push_back(in_parts(qkv, {}, grad_out, {0, 100, 300}, shape, false));
  }
  set_num_threads(before);
  EXPECT_TRUE(at::equal(results[0].out, results[1].out));
  EXPECT_TRUE(at::equal(results[0].grad_qkv, results[1].grad_qkv));
}

TEST(AttentionPart, refuses_pieces_beyond_the_rows) {
  const AttentionShape shape{1, 1, 8};
  const at::Tensor qkv = at::zeros({4, shape.row_width()}), keys = keys_and_values(qkv, shape);
  AttentionSums sums = begin_attention(qkv, shape);
  EXPECT_THROW(attend_to_part(qkv, keys, {{0, 5, 0, 4, 1, 0}}, shape, sums), InternalError);
  EXPECT_THROW(attend_to_part(qkv, keys, {{0, 4, 0, 5, 1, 0}}, shape, sums), InternalError);
  EXPECT_THROW(attend_to_part(qkv, keys.narrow(1, 0, 8), {}, shape, sums), InternalError);
}

}  // namespace
}  // namespace moebius::ops
