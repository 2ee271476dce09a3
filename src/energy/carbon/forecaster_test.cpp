#include "energy/carbon/forecaster.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "base/error.h"
#include "base/philox.h"
#include "base/test_folder.h"

namespace moebius::energy::carbon {
namespace {

std::vector<double> days_of(int days, double night, double day) {
  std::vector<double> values;
  for (int hour = 0; hour < 24 * days; ++hour)
    values.push_back(hour % 24 >= 8 && hour % 24 < 20 ? day : night);
  return values;
}

// Weather that stays for hours, over a daily course.
std::vector<double> windy(int hours) {
  const Philox random(5, "windy grid");
  std::vector<double> values;
  double weather = 0;
  for (int hour = 0; hour < hours; ++hour) {
    weather = 0.95 * weather + 20 * static_cast<double>(random.normal(hour));
    values.push_back(300 + 50 * std::sin(2 * std::numbers::pi * hour / 24) + weather);
  }
  return values;
}

TEST(Forecaster, persistence_repeats_the_last_completed_day) {
  std::vector<double> series(48);
  for (int hour = 0; hour < 48; ++hour) series[hour] = hour;
  const auto forecaster = make_forecaster("persistence", {series});
  const auto values = forecaster->predict(30, 26).values;
  EXPECT_EQ(values[0], 6);  // hour 30 is 06:00; the last completed 06:00 is hour 6
  EXPECT_EQ(values[23], 29);
  EXPECT_EQ(values[24], 6);
  EXPECT_EQ(forecaster->predict(3, 2).values, (std::vector<double>{2, 2}));
  EXPECT_EQ(forecaster->predict(0, 2).values, (std::vector<double>{1, 1}));
}

TEST(Forecaster, seven_day_is_the_mean_of_the_time_of_day_at_the_level_of_the_last_day) {
  // Seven days at 100 by night and 300 by day, the last one at twice that: profile (6 x 100 + 200) / 7 and 3
  // x that.
  std::vector<double> series = days_of(7, 100, 300);
  for (int hour = 6 * 24; hour < 7 * 24; ++hour) series[hour] *= 2;
  const auto values = make_forecaster("seven_day", {series})->predict(168, 30).values;
  EXPECT_NEAR(values[0], 200, 1e-9);  // 800 / 7 x 2 / (8 / 7)
  EXPECT_NEAR(values[12], 600, 1e-9);
  EXPECT_NEAR(values[24], 200, 1e-9);
}

TEST(Forecaster, oracle_sees_the_series_and_may_be_blurred) {
  const std::vector<double> series{1, 2, 3};
  EXPECT_EQ(make_forecaster("oracle", {series})->predict(1, 4).values, (std::vector<double>{2, 3, 3, 3}));
  const std::vector<double> flat(20000, 100);
  const auto blurred = make_forecaster("oracle", {flat}, {.share = 0.05, .seed = 1});
  double sum = 0, power = 0;
  for (const double value : blurred->predict(0, 20000).values) {
    sum += value - 100;
    power += (value - 100) * (value - 100);
  }
  EXPECT_NEAR(sum / 20000, 0, 0.2);
  EXPECT_NEAR(std::sqrt(power / 20000), 5, 0.1);
  // The same at every look.
  EXPECT_EQ(blurred->predict(7, 1).values[0], blurred->predict(0, 8).values[7]);
}

TEST(Forecaster, honest_ones_do_not_see_the_future) {
  const std::vector<double> series = windy(60 * 24);
  for (const std::string& name : forecaster_names()) {
    if (name == "oracle") continue;
    for (const int64_t known : {0, 5, 30, 180, 200, 700, 1200}) {
      std::vector<double> other = series;
      for (size_t i = known; i < other.size(); ++i) other[i] = 1000 + static_cast<double>(i);
      const auto expected = make_forecaster(name, {series})->predict(known, 100);
      const auto actual = make_forecaster(name, {other})->predict(known, 100);
      EXPECT_EQ(actual.values, expected.values) << name << " at " << known;
      EXPECT_EQ(actual.deviations, expected.deviations) << name << " at " << known;
      EXPECT_EQ(expected.values.size(), 100u);
    }
  }
}

TEST(Forecaster, own_gives_the_same_in_any_order_of_questions) {
  const std::vector<double> series = windy(40 * 24);
  const auto forecaster = make_forecaster("own", {series});
  const auto first = forecaster->predict(500, 50).values;
  forecaster->predict(900, 50);
  EXPECT_EQ(forecaster->predict(500, 50).values, first);
}

TEST(Forecaster, own_is_exact_where_every_day_is_the_same) {
  const std::vector<double> series = days_of(30, 100, 300);
  const auto forecast = make_forecaster("own", {series})->predict(20 * 24 + 5, 60);
  for (int i = 0; i < 60; ++i) EXPECT_NEAR(forecast.values[i], series[20 * 24 + 5 + i], 1e-9) << i;
  EXPECT_NEAR(forecast.deviations[0], 0, 1e-9);
}

// On weather with a known law: better than both published rules, near the best possible for the next hour,
// and its deviations are those of its errors.
TEST(Forecaster, own_learns_how_long_weather_stays) {
  const std::vector<double> series = windy(200 * 24);
  const auto own = make_forecaster("own", {series}), week = make_forecaster("seven_day", {series}),
             persistence = make_forecaster("persistence", {series});
  const std::vector<int> horizons{0, 5, 11, 23, 60};
  std::vector<double> own_power(5), week_power(5), persistence_power(5), claimed(5);
  int count = 0;
  for (int64_t known = 120 * 24; known < 190 * 24; known += 7, ++count) {
    const Forecast a = own->predict(known, 61);
    const auto b = week->predict(known, 61).values, c = persistence->predict(known, 61).values;
    for (size_t i = 0; i < horizons.size(); ++i) {
      const int k = horizons[i];
      const double truth = series[known + k];
      own_power[i] += std::pow(a.values[k] - truth, 2);
      week_power[i] += std::pow(b[k] - truth, 2);
      persistence_power[i] += std::pow(c[k] - truth, 2);
      claimed[i] += std::pow(a.deviations[k], 2);
    }
  }
  for (size_t i = 0; i < horizons.size(); ++i) {
    EXPECT_LT(own_power[i], 0.9 * std::min(week_power[i], persistence_power[i])) << "horizon " << horizons[i];
    EXPECT_NEAR(std::sqrt(claimed[i] / own_power[i]), 1, 0.25) << "horizon " << horizons[i];
  }
  EXPECT_LT(std::sqrt(own_power[0] / count), 1.2 * 20);  // 20 is the noise of an hour
}

TEST(Forecaster, reads_half_hours) {
  std::vector<double> series;
  for (const double value : days_of(30, 100, 300)) series.insert(series.end(), 2, value);
  const auto forecast = make_forecaster("own", {series, 1800})->predict(20 * 48, 200);
  for (int i = 0; i < 200; ++i) EXPECT_NEAR(forecast.values[i], series[20 * 48 + i], 1e-9) << i;
}

TEST(Forecaster, names_are_checked) {
  EXPECT_EQ(canonical_forecaster_name("seven-day"), "seven_day");
  EXPECT_EQ(message_of<UserError>([] { canonical_forecaster_name("oracel"); }),
            "--forecast is 'oracel', which is none of oracle, persistence, seven_day, own; is it oracle?");
}

}  // namespace
}  // namespace moebius::energy::carbon
