#include "moe/balance/bias_rule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace moebius::moe {
namespace {

// Tokens whose scores for 16 experts are sigmoids of normal logits around each expert's mean, top 2 of score
// + bias: what a router with a selection bias does.
class Router {
 public:
  explicit Router(unsigned seed) : random_(seed), means_(16) { shift(); }
  void shift() {
    for (double& mean : means_) mean = 0.4 * normal_(random_);
  }
  std::vector<double> shares(const std::vector<double>& bias) {
    std::vector<double> counts(16);
    for (int token = 0; token < 1024; ++token) {
      double first = -1e9, second = -1e9;
      size_t first_expert = 0, second_expert = 0;
      for (size_t e = 0; e < 16; ++e) {
        const double score = 1 / (1 + std::exp(-(means_[e] + normal_(random_)))) + bias[e];
        if (score > first) {
          second = first, second_expert = first_expert;
          first = score, first_expert = e;
        } else if (score > second) {
          second = score, second_expert = e;
        }
      }
      counts[first_expert] += 1.0 / 2048;
      counts[second_expert] += 1.0 / 2048;
    }
    return counts;
  }

 private:
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  std::vector<double> means_;
};

struct Course {
  int steps_to_balance = 0;  // from the shift until the mean of 20 steps stays within 0.1 of even
  double at_end = 0;         // violation of the mean load of the last 100 steps
};

template <class Update>
Course course_after_shift(unsigned seed, Update&& update) {
  Router router(seed);
  std::vector<double> bias(16);
  std::vector<std::vector<double>> history;
  const auto violation = [&](size_t from, size_t to) {
    std::vector<double> mean(16);
    for (size_t t = from; t < to; ++t)
      for (size_t e = 0; e < 16; ++e) mean[e] += history[t][e] / static_cast<double>(to - from);
    return 16 * *std::max_element(mean.begin(), mean.end()) - 1;
  };
  constexpr size_t kShift = 300, kSteps = 700;
  Course course;
  for (size_t t = 0; t < kSteps; ++t) {
    if (t == kShift) router.shift();
    history.push_back(router.shares(bias));
    update(history.back(), bias);
    if (course.steps_to_balance == 0 && t >= kShift + 20 && violation(t - 19, t + 1) < 0.1)
      course.steps_to_balance = static_cast<int>(t - kShift);
  }
  course.at_end = violation(kSteps - 100, kSteps);
  EXPECT_NEAR(std::accumulate(bias.begin(), bias.end(), 0.0), 0, 1e-9);
  return course;
}

TEST(BiasRule, a_forecast_answers_a_shift_sooner_than_the_sign_and_ends_as_even) {
  double sign_steps = 0, forecast_steps = 0;
  for (unsigned seed = 1; seed <= 2; ++seed) {
    const Course sign = course_after_shift(seed, [](std::span<const double> shares, std::span<double> bias) {
      sign_bias_update(shares, 0.001, bias);
    });
    ForecastBias rule({}, 16);
    const Course forecast = course_after_shift(
        seed, [&](std::span<const double> shares, std::span<double> bias) { rule.update(shares, bias); });
    ASSERT_GT(sign.steps_to_balance, 0);
    ASSERT_GT(forecast.steps_to_balance, 0);
    sign_steps += sign.steps_to_balance;
    forecast_steps += forecast.steps_to_balance;
    EXPECT_LE(forecast.at_end, 0.04) << seed;
  }
  EXPECT_LT(forecast_steps, 0.5 * sign_steps);
  RecordProperty("sign_steps", std::to_string(sign_steps / 2));
  RecordProperty("forecast_steps", std::to_string(forecast_steps / 2));
}

TEST(BiasRule, a_rule_goes_on_from_its_state) {
  Router router(5);
  std::vector<double> bias(16), copy(16);
  ForecastBias straight({}, 16), resumed({}, 16);
  for (int t = 0; t < 20; ++t) straight.update(router.shares(bias), bias);
  copy = bias;
  resumed.set_state(straight.state());
  const std::vector<double> next = router.shares(bias);
  straight.update(next, bias);
  resumed.update(next, copy);
  EXPECT_EQ(bias, copy);
}

TEST(BiasRule, capacity_leaves_room_for_chance) {
  EXPECT_EQ(capacity_hints(std::vector<double>{0.25, 0.75, 0.0}, 1000, 0),
            (std::vector<int64_t>{250, 750, 0}));
  // sqrt(1000 * 0.25 * 0.75) = 13.7
  EXPECT_EQ(capacity_hints(std::vector<double>{0.25}, 1000, 4), (std::vector<int64_t>{305}));
  EXPECT_EQ(capacity_hints(std::vector<double>{1.0}, 100, 4), (std::vector<int64_t>{100}));
}

}  // namespace
}  // namespace moebius::moe
