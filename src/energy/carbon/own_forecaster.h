// The honest forecast of moebius: for each horizon a ridge regression on what the last days showed, fitted
// online.
//
// The base is the mean of the target's time of day over the last seven days; the regression corrects it by
//   - ten anomalies: how far the last hours (1, 2, 3, 4-6, 7-12, 13-24 back) lay above their own seven-day
//   means, and how
//     far the same time of day lay above the base on the last day, the day before, a week before the target,
//     and on average of 28 days. Windy grids live from the first group (weather persists for hours, then the
//     mean comes back), sunny ones from the second;
//   - whether the target lies on a Saturday or a Sunday.
// Each hour up to 48 has coefficients of its own, days behind share theirs. Samples fade with a half-life of
// 90 days; until there are enough of them, a prior holds: the last hour's anomaly dies off with a time
// constant of 8 h.
//
// The deviation is that of the regression's own errors on values it had not seen, fading with 30 days.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "energy/carbon/forecaster.h"

namespace moebius::energy::carbon {

class OwnForecaster final : public Forecaster {
 public:
  explicit OwnForecaster(const Series& series);
  Forecast predict(int64_t known, int64_t horizon) override;

 private:
  static constexpr int kFeatures = 12;
  static constexpr int kHourly = 48;  // regressions of one hour each
  static constexpr int kDaily = 4;    // then of one day each; the last serves all behind
  static constexpr int kGroups = kHourly + kDaily;
  using Vector = std::array<double, kFeatures>;
  using Recent = std::array<double, 6>;  // anomalies of the last hours, which all horizons of an origin share

  // One horizon. Sums are weighted: weights grow with time instead of the past fading.
  struct Regression {
    std::array<Vector, kFeatures> gram{};  // of x x', both halves
    Vector moment{};                       // of x y
    double target_power = 0, weight = 0;   // of y y, of 1
    double error_power = 0, error_weight = 0;
    Vector coefficients{};
  };
  struct Sample {
    Vector features{};
    double base = 0;
  };

  void reset();
  void advance(int64_t known);
  void learn(int64_t step);
  void solve(Regression& regression, int group) const;
  Recent recent_at(int64_t origin) const;
  Sample sample_at(int64_t origin, int64_t ahead, const Recent& recent) const;
  int group_of(int64_t ahead) const;
  double mean_anomaly(int64_t from, int64_t to) const;
  static Vector prior(int group);

  Series series_;
  int64_t hour_, day_;  // steps in one
  int64_t known_ = 0;
  std::vector<Regression> regressions_;
  // anomaly_sums_[i]: sum of value - mean of the seven days before at the same time, over steps 7 days .. 7
  // days + i - 1.
  std::vector<double> anomaly_sums_;
};

}  // namespace moebius::energy::carbon
