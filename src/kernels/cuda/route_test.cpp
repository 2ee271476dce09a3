#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

struct Case {
  int64_t tokens, experts, top_k;
  Score score = Score::softmax;
  bool after = false, normalize = true, bias = false;
  int64_t segments = 1;
};

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

double log_sum_exp(const double* x, size_t n) {
  const double max = *std::max_element(x, x + n);
  double sum = 0.0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

// Scores of one token, and the probabilities that the balance loss sees.
void scores_of(const Case& c, const double* x, std::vector<double>& scores, std::vector<double>& probs) {
  const size_t n = static_cast<size_t>(c.experts);
  const double lse = log_sum_exp(x, n);
  scores.resize(n);
  double sum = 0.0;
  for (size_t e = 0; e < n; ++e) {
    scores[e] = c.score == Score::softmax ? std::exp(x[e] - lse) : sigmoid(x[e]);
    sum += scores[e];
  }
  probs = scores;
  if (c.score == Score::sigmoid) {
    for (double& p : probs) p /= sum;
  }
}

std::vector<double> weights_of(const Case& c, const double* x, const std::vector<double>& scores,
                               const int32_t* chosen) {
  std::vector<double> w;
  double sum = 0.0;
  for (int64_t k = 0; k < c.top_k; ++k) {
    const size_t e = static_cast<size_t>(chosen[k]);
    w.push_back(c.after ? std::exp(x[e]) : scores[e]);
    sum += w.back();
  }
  for (double& value : w) value *= c.normalize || c.after ? 2.5 / sum : 2.5;
  return w;
}

void check_route(const Case& c) {
  SCOPED_TRACE(std::to_string(c.tokens) + " tokens, " + std::to_string(c.experts) + " experts, top " +
               std::to_string(c.top_k) + ", score " + std::to_string(static_cast<int>(c.score)) +
               (c.after ? ", softmax after" : "") + (c.normalize ? "" : ", not normalised") +
               (c.bias ? ", bias" : ""));
  const size_t experts = static_cast<size_t>(c.experts), top_k = static_cast<size_t>(c.top_k);
  const RouteOptions options{c.tokens, c.experts, c.top_k, c.score, c.after, c.normalize, 2.5f};
  const Values logits = Values::normal(DType::f32, c.tokens * c.experts, 1, 2.0),
               bias = Values::normal(DType::f32, c.experts, 2, 0.3);
  const Values probs(DType::f32, c.tokens * c.experts), weights(DType::f32, c.tokens * c.top_k),
      lse(DType::f32, c.tokens);
  const Integers<int32_t> chosen(c.tokens * c.top_k);
  route_forward({options, logits.floats(), c.bias ? bias.floats() : nullptr, probs.floats(), chosen.data(),
                 weights.floats(), lse.floats()},
                nullptr);
  std::vector<double> ref_probs, ref_weights, ref_lse;
  std::vector<int32_t> ref_chosen;
  const std::vector<int32_t> found = chosen.host();
  for (size_t t = 0; t < static_cast<size_t>(c.tokens); ++t) {
    const double* x = logits.start().data() + t * experts;
    std::vector<double> scores, p;
    scores_of(c, x, scores, p);
    ref_probs.insert(ref_probs.end(), p.begin(), p.end());
    ref_lse.push_back(log_sum_exp(x, experts));
    std::vector<int32_t> by_key(experts);
    std::iota(by_key.begin(), by_key.end(), 0);
    const auto key = [&](int32_t e) {
      const size_t i = static_cast<size_t>(e);
      return c.bias ? scores[i] + bias.start()[i] : x[i];
    };
    std::stable_sort(by_key.begin(), by_key.end(), [&](int32_t a, int32_t b) { return key(a) > key(b); });
    ref_chosen.insert(ref_chosen.end(), by_key.begin(), by_key.begin() + c.top_k);
    const std::vector<double> w = weights_of(c, x, scores, by_key.data());
    ref_weights.insert(ref_weights.end(), w.begin(), w.end());
  }
  EXPECT_EQ(found, ref_chosen);
  expect_close("probs", probs.host(), ref_probs, DType::f32);
  expect_close("weights", weights.host(), ref_weights, DType::f32);
  expect_close("lse", lse.host(), ref_lse, DType::f32);

  // Statistics.
  std::vector<int32_t> segment(static_cast<size_t>(c.tokens));
  for (size_t t = 0; t < segment.size(); ++t)
    segment[t] = static_cast<int32_t>(static_cast<int64_t>(t * t) * c.segments / (c.tokens * c.tokens));
  const Integers<int32_t> segments(segment);
  const int32_t* segments_or_null = c.segments == 1 ? nullptr : segments.data();
  const Values prob_sum(DType::f32, c.segments * c.experts), counts(DType::f32, c.segments * c.experts),
      sums(DType::f32, 2);
  route_stats({options, probs.floats(), chosen.data(), lse.floats(), segments_or_null, c.segments,
               prob_sum.floats(), counts.floats(), sums.floats(), sums.floats() + 1},
              nullptr);
  std::vector<double> ref_sum(static_cast<size_t>(c.segments) * experts), ref_counts(ref_sum.size()),
      ref_sums(2);
  for (size_t t = 0; t < segment.size(); ++t) {
    const size_t row = static_cast<size_t>(segment[t]) * experts;
    for (size_t e = 0; e < experts; ++e) {
      const double p = ref_probs[t * experts + e];
      ref_sum[row + e] += p;
      ref_sums[0] -= p * std::log(p);
    }
    for (size_t k = 0; k < top_k; ++k) ref_counts[row + static_cast<size_t>(found[t * top_k + k])] += 1.0;
    ref_sums[1] += ref_lse[t] * ref_lse[t];
  }
  expect_close("prob_sum", prob_sum.host(), ref_sum, DType::f32);
  EXPECT_EQ(counts.host(), ref_counts);
  expect_close("entropy and lse^2", sums.host(), ref_sums, DType::f32);

  // Backward, against central differences of the objective in double.
  if (c.tokens > 64 || c.experts > 64) return;
  const Values grad_weights = Values::normal(DType::f32, c.tokens * c.top_k, 5),
               grad_lse(DType::f32, std::vector<double>{0.01});
  const Values grad_probs = Values::normal(DType::f32, c.segments * c.experts, 6),
               grad_logits(DType::f32, c.tokens * c.experts);
  route_backward(
      {options, logits.floats(), probs.floats(), chosen.data(), weights.floats(), lse.floats(),
       grad_weights.floats(), grad_probs.floats(), segments_or_null, grad_lse.floats(), grad_logits.floats()},
      nullptr);
  std::vector<double> expected;
  for (size_t t = 0; t < segment.size(); ++t) {
    std::vector<double> x(logits.start().begin() + static_cast<ptrdiff_t>(t * experts),
                          logits.start().begin() + static_cast<ptrdiff_t>((t + 1) * experts));
    const auto objective = [&] {
      std::vector<double> scores, p;
      scores_of(c, x.data(), scores, p);
      const std::vector<double> w = weights_of(c, x.data(), scores, found.data() + t * top_k);
      double sum = 0.0;
      for (size_t k = 0; k < top_k; ++k) sum += w[k] * grad_weights.start()[t * top_k + k];
      for (size_t e = 0; e < experts; ++e)
        sum += p[e] * grad_probs.start()[static_cast<size_t>(segment[t]) * experts + e];
      const double l = log_sum_exp(x.data(), experts);
      return sum + grad_lse.start()[0] * l * l;
    };
    for (size_t e = 0; e < experts; ++e) {
      constexpr double kStep = 1e-5;
      const double start = x[e];
      x[e] = start + kStep;
      const double up = objective();
      x[e] = start - kStep;
      const double down = objective();
      x[e] = start;
      expected.push_back((up - down) / (2.0 * kStep));
    }
  }
  expect_close("grad_logits", grad_logits.host(), expected, DType::f32);
}

TEST(CudaRoute, agrees_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const bool normalize : {false, true}) {
      for (const bool bias : {false, true}) {
        check_route({37, 8, 2, score, false, normalize, bias});
        check_route({33, 60, 6, score, false, normalize, bias, 5});
        check_route({300, 128, 8, score, false, normalize, bias, 3});
      }
    }
  }
  for (const int64_t experts : {1, 2, 31, 32, 33, 64, 512, 1000, 1024})
    check_route({40, experts, std::min<int64_t>(experts, 32), Score::softmax, false, false});
  check_route({50, 16, 4, Score::softmax, true});
  check_route({50, 64, 1, Score::softmax, true, true, true});
  check_route({1, 8, 2});
  check_route({5000, 64, 8, Score::softmax, false, true, false, 4});
  check_route({3000, 8, 2, Score::softmax, false, true, false, 1000});
}

TEST(CudaRoute, chooses_different_valid_experts_whatever_the_logits) {
  MOEBIUS_NEEDS_DEVICE();
  constexpr double kInf = std::numeric_limits<double>::infinity(),
                   kNan = std::numeric_limits<double>::quiet_NaN();
  for (const double value : {kInf, -kInf, kNan, 0.0}) {
    const Values logits(DType::f32, std::vector<double>(4 * 40, value)), probs(DType::f32, 4 * 40),
        weights(DType::f32, 4 * 6), lse(DType::f32, 4);
    const Integers<int32_t> chosen(4 * 6);
    route_forward({{4, 40, 6, Score::softmax, false, true, 1.0f},
                   logits.floats(),
                   nullptr,
                   probs.floats(),
                   chosen.data(),
                   weights.floats(),
                   lse.floats()},
                  nullptr);
    const std::vector<int32_t> found = chosen.host();
    for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i], static_cast<int32_t>(i % 6)) << value;
  }
}

void check_sort(int64_t slots, int64_t num_experts, int64_t capacity, bool skewed) {
  SCOPED_TRACE(std::to_string(slots) + " slots, " + std::to_string(num_experts) + " experts, capacity " +
               std::to_string(capacity));
  std::mt19937 random(3);
  std::vector<int32_t> experts(static_cast<size_t>(slots));
  for (int32_t& e : experts) {
    e = static_cast<int32_t>(random() % static_cast<uint32_t>(num_experts));
    if (skewed) e = e % 7 == 0 ? e : 0;
  }
  const Integers<int32_t> device_experts(experts), order(slots), inverse(slots), offsets(num_experts + 1);
  sort_by_expert(
      {device_experts.data(), slots, num_experts, capacity, order.data(), inverse.data(), offsets.data()},
      nullptr);
  std::vector<int32_t> ref_order(experts.size(), -1), ref_inverse(experts.size(), -1), ref_offsets{0};
  int32_t row = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    int64_t taken = 0;
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      if (experts[slot] != e || (capacity >= 0 && taken == capacity)) continue;
      ++taken;
      ref_order[static_cast<size_t>(row)] = static_cast<int32_t>(slot);
      ref_inverse[slot] = row++;
    }
    ref_offsets.push_back(row);
  }
  EXPECT_EQ(order.host(), ref_order);
  EXPECT_EQ(inverse.host(), ref_inverse);
  EXPECT_EQ(offsets.host(), ref_offsets);
}

TEST(CudaSort, is_a_stable_counting_sort_with_capacity) {
  MOEBIUS_NEEDS_DEVICE();
  for (const int64_t slots : {1, 31, 1000, 1024, 4097, 70000}) {
    for (const int64_t experts : {1, 8, 60, 128}) {
      check_sort(slots, experts, -1, false);
      check_sort(slots, experts, slots / experts / 2, true);
    }
  }
  check_sort(20000, 1024, -1, false);
  check_sort(20000, 512, 0, false);
  check_sort(600000, 16, -1, true);
}

TEST(CudaSort, no_slots_give_empty_experts) {
  MOEBIUS_NEEDS_DEVICE();
  const Integers<int32_t> offsets(5);
  sort_by_expert({nullptr, 0, 4, -1, nullptr, nullptr, offsets.data()}, nullptr);
  EXPECT_EQ(offsets.host(), std::vector<int32_t>(5, 0));
}

}  // namespace
}  // namespace moebius::kernels::cuda
