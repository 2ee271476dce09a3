#include "nn/generation.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "base/philox.h"

namespace moebius::nn {
namespace {

constexpr int64_t kVocab = 40;

// Logits with two equal ones at each place of the order.
at::Tensor some_logits() {
  std::vector<float> logits(kVocab);
  for (int64_t i = 0; i < kVocab; ++i)
    logits[static_cast<size_t>(i)] = 0.2f * static_cast<float>(i * 17 % kVocab / 2);
  return at::tensor(logits);
}

std::vector<int64_t> by_likelihood(const at::Tensor& logits_V) {
  const float* logits = logits_V.const_data_ptr<float>();
  std::vector<int64_t> order(kVocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  return order;
}

std::set<int64_t> drawn(const SamplingOptions& options) {
  std::set<int64_t> tokens;
  const at::Tensor logits_V = some_logits();
  for (uint64_t i = 0; i < 20000; ++i) tokens.insert(sample_token(logits_V, options, i));
  return tokens;
}

std::set<int64_t> first_of(const std::vector<int64_t>& order, size_t count) {
  return {order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count)};
}

TEST(SampleToken, divides_the_unit_interval_by_probability) {
  const at::Tensor logits_V = some_logits();
  const float* logits = logits_V.const_data_ptr<float>();
  const SamplingOptions options{.temperature = 0.7, .seed = 5};
  const float most = *std::max_element(logits, logits + kVocab);
  std::vector<double> weights(kVocab);
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = std::exp((static_cast<double>(logits[i]) - most) / options.temperature);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (uint64_t index = 0; index < 2000; ++index) {
    const double target = Philox(options.seed, "sample").uniform_double(index) * total;
    int64_t want = 0;
    for (double sum = weights[0]; want + 1 < kVocab && target >= sum;
         sum += weights[static_cast<size_t>(want)])
      ++want;
    ASSERT_EQ(sample_token(logits_V, options, index), want) << "draw " << index;
  }
}

TEST(SampleToken, keeps_to_the_likeliest) {
  const std::vector<int64_t> order = by_likelihood(some_logits());
  EXPECT_EQ(drawn({.temperature = 2, .top_k = 1}), first_of(order, 1));
  EXPECT_EQ(drawn({.temperature = 2, .top_k = 7}), first_of(order, 7));
  EXPECT_EQ(drawn({.temperature = 2, .top_k = 1000}), first_of(order, kVocab));
}

TEST(SampleToken, keeps_to_as_many_as_reach_the_probability) {
  const at::Tensor logits_V = some_logits();
  const float* logits = logits_V.const_data_ptr<float>();
  const std::vector<int64_t> order = by_likelihood(logits_V);
  const auto weight = [&](int64_t token) { return std::exp(static_cast<double>(logits[token]) / 2); };
  double total = 0;
  for (const int64_t token : order) total += weight(token);
  for (const double top_p : {0.0, 0.3, 0.9}) {
    size_t count = 0;
    for (double sum = 0; count == 0 || sum < top_p * total; ++count) sum += weight(order[count]);
    EXPECT_EQ(drawn({.temperature = 2, .top_p = top_p}), first_of(order, count)) << top_p;
  }
  EXPECT_EQ(drawn({.temperature = 2, .top_k = 3, .top_p = 0.0}), first_of(order, 1));
}

TEST(SampleToken, takes_the_lowest_of_the_likeliest_at_temperature_zero) {
  EXPECT_EQ(sample_token(some_logits(), {.temperature = 0}, 3), by_likelihood(some_logits()).front());
}

}  // namespace
}  // namespace moebius::nn
