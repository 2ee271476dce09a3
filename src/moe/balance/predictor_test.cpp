#include "moe/balance/predictor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "base/error.h"
#include "moe/balance/forecast_score.h"

namespace moebius::moe {
namespace {

using Shares = std::vector<double>;

// Mean error over the last half of `count` steps of shares(t).
template <class F>
double error_of(const std::string& spec, int64_t horizon, int count, F&& shares) {
  ForecastScore score(spec, static_cast<int64_t>(shares(0).size()), horizon);
  double sum = 0;
  int judged = 0;
  for (int t = 0; t < count; ++t) {
    const auto error = score.observe(shares(t));
    if (!error || t < count / 2) continue;
    sum += error->share;
    ++judged;
  }
  return sum / judged;
}

TEST(LoadPredictor, simple_kinds_are_what_they_say) {
  const std::vector<Shares> steps = {{0.5, 0.5}, {0.8, 0.2}, {0.2, 0.8}};
  const auto predicted = [&](const std::string& spec) {
    const auto predictor = make_predictor(spec, 2, 10);
    EXPECT_EQ(predictor->predict(), (Shares{0.5, 0.5})) << "before the first step";
    for (const Shares& shares : steps) predictor->observe(shares);
    return predictor->predict()[0];
  };
  EXPECT_DOUBLE_EQ(predicted("last"), 0.2);
  EXPECT_DOUBLE_EQ(predicted("mean:2"), 0.5);
  EXPECT_DOUBLE_EQ(predicted("mean:3"), 0.5);
  EXPECT_DOUBLE_EQ(predicted("exp:1"), 0.425) << "0.5, then 0.65, then half way to 0.2";
}

TEST(LoadPredictor, every_kind_gives_shares_whatever_it_saw) {
  std::mt19937 random(1);
  for (const std::string& spec : predictor_specs()) {
    const auto predictor = make_predictor(spec, 5, 7);
    for (int t = 0; t < 400; ++t) {
      Shares shares(5);
      double sum = 0;
      for (double& share : shares)
        sum += share = t % 50 == 0 ? 1e-12 : std::exp(static_cast<double>(random() % 1000) * 0.01);
      for (double& share : shares) share /= sum;
      predictor->observe(shares);
      const Shares forecast = predictor->predict();
      EXPECT_NEAR(std::accumulate(forecast.begin(), forecast.end(), 0.0), 1, 1e-9) << spec;
      for (const double share : forecast) ASSERT_TRUE(share >= 0 && share <= 1) << spec << " " << share;
    }
  }
}

TEST(LoadPredictor, autoregression_finds_an_oscillation_that_means_cannot) {
  // A sine is exactly an autoregression of order 2.
  const auto shares = [](int t) {
    const double x = 0.2 * std::sin(0.3 * t);
    return Shares{0.5 + x, 0.5 - x};
  };
  EXPECT_LT(error_of("ar:4:512", 5, 2000, shares), 0.03);
  EXPECT_GT(error_of("mean:256", 5, 2000, shares), 0.2);
  EXPECT_GT(error_of("last", 5, 2000, shares), 0.2);
}

TEST(LoadPredictor, the_linear_model_learns_a_drift_back_to_balance) {
  // Deviations halve every 400 steps, under noise: 200 steps ahead, less of the deviation is left than any
  // mean shows.
  std::mt19937 random(3);
  std::normal_distribution<double> noise(0, 0.01);
  std::vector<Shares> steps;
  Shares deviation(8);
  for (int t = 0; t < 6000; ++t) {
    Shares shares(8);
    double sum = 0;
    for (size_t e = 0; e < shares.size(); ++e) {
      if (t % 1500 == 0) deviation[e] = 0.3 * std::sin(static_cast<double>(e * 7 + static_cast<size_t>(t)));
      deviation[e] *= std::exp2(-1.0 / 400);
      sum += shares[e] = 1 + deviation[e] + noise(random);
    }
    for (double& share : shares) share /= sum;
    steps.push_back(shares);
  }
  const auto shares = [&](int t) { return steps[static_cast<size_t>(t)]; };
  const double linear = error_of("linear", 200, 6000, shares);
  EXPECT_LT(linear, 0.9 * error_of("last", 200, 6000, shares));
  EXPECT_LT(linear, 0.9 * error_of("mean:256", 200, 6000, shares));
}

TEST(LoadPredictor, user_errors_name_the_value_and_the_way_out) {
  const auto error = [](const std::string& spec) -> std::string {
    try {
      make_predictor(spec, 4, 1);
    } catch (const UserError& refused) {
      return refused.what();
    }
    return "no error";
  };
  EXPECT_EQ(
      error("median"),
      "predictor 'median' is not known; give last, mean:STEPS, exp:HALF_LIFE, ar:ORDER:STEPS or linear");
  EXPECT_EQ(error("mean:0"), "predictor 'mean:0': 0 is not a number of steps from 1 to 100000 that it takes");
  EXPECT_EQ(error("mean:x"), "predictor 'mean:x': x is not a number of steps from 1 to 100000 that it takes");
  EXPECT_EQ(error("last:3"), "predictor 'last:3': 3 is not a number of steps from 1 to 100000 that it takes");
  EXPECT_EQ(error("ar:4:100:5"),
            "predictor 'ar:4:100:5': 5 is not a number of steps from 1 to 100000 that it takes");
}

TEST(ForecastScore, judges_a_forecast_when_its_horizon_has_come) {
  // Shares of expert 0 are 0.5, 0.51, 0.52, ...; "last" is 0.03 behind three steps later.
  ForecastScore score("last", 2, 3), smooth("last", 2, 3, 2);
  for (int t = 0; t < 20; ++t) {
    const double share = 0.5 + 0.01 * t;
    const auto error = score.observe(Shares{share, 1 - share});
    ASSERT_EQ(error.has_value(), t >= 3);
    if (error) {
      EXPECT_NEAR(error->share, (0.03 / share + 0.03 / (1 - share)) / 2, 1e-9);
      EXPECT_NEAR(error->largest, 0.03 / share, 1e-9);
    }
    const auto error_of_two = smooth.observe(Shares{share, 1 - share});
    ASSERT_EQ(error_of_two.has_value(), t >= 4);
    if (error_of_two) {
      EXPECT_NEAR(error_of_two->largest, 0.035 / (share - 0.005), 1e-9);
    }
  }
}

TEST(ForecastScore, chance_is_what_a_right_forecast_leaves) {
  std::mt19937 random(9);
  const Shares shares = {0.1, 0.2, 0.3, 0.4};
  std::discrete_distribution<int> expert(shares.begin(), shares.end());
  double sum = 0;
  for (int t = 0; t < 400; ++t) {
    Shares drawn(4);
    for (int i = 0; i < 500; ++i) drawn[static_cast<size_t>(expert(random))] += 1.0 / 500;
    sum += forecast_error(shares, drawn).share / 400;
  }
  EXPECT_NEAR(sampling_error(shares, 500), sum, 0.1 * sum) << "to first order";
}

}  // namespace
}  // namespace moebius::moe
