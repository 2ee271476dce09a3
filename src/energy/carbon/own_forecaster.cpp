#include "energy/carbon/own_forecaster.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace moebius::energy::carbon {
namespace {

constexpr double kHalfLifeHours = 90 * 24;
constexpr double kErrorHalfLifeHours = 30 * 24;
constexpr double kPriorSamples = 60;
constexpr double kPriorHours = 8;
constexpr int kEveryStep = 12;
constexpr int kProfileDays = 7, kLongDays = 28;
// No grid falls to a twentieth of its weekly mean within hours; an extrapolation may.
constexpr double kLowestShare = 0.05;

}  // namespace

OwnForecaster::OwnForecaster(const Series& series)
    : series_(series), hour_(3600 / series.step_s), day_(86400 / series.step_s) {
  MOEBIUS_CHECK(hour_ >= 1 && 3600 % series.step_s == 0, "steps of ", series.step_s, " s");
  reset();
}

void OwnForecaster::reset() {
  known_ = 0;
  anomaly_sums_.assign(1, 0);
  regressions_.assign(kGroups, {});
  for (int group = 0; group < kGroups; ++group) regressions_[group].coefficients = prior(group);
}

OwnForecaster::Vector OwnForecaster::prior(int group) {
  Vector coefficients{};
  if (group < kHourly) coefficients[0] = std::exp(-(group + 1) / kPriorHours);
  return coefficients;
}

int OwnForecaster::group_of(int64_t ahead) const {
  const int64_t hour = ahead / hour_;
  if (hour < kHourly) return static_cast<int>(hour);
  return kHourly + static_cast<int>(std::min<int64_t>((hour - kHourly) / 24, kDaily - 1));
}

double OwnForecaster::mean_anomaly(int64_t from, int64_t to) const {
  const int64_t first = kProfileDays * day_;
  return (anomaly_sums_[to - first] - anomaly_sums_[from - first]) / static_cast<double>(to - from);
}

OwnForecaster::Recent OwnForecaster::recent_at(int64_t origin) const {
  constexpr std::array<std::array<int, 2>, 6> kHoursBack{{{0, 1}, {1, 2}, {2, 3}, {3, 6}, {6, 12}, {12, 24}}};
  Recent recent;
  for (size_t i = 0; i < kHoursBack.size(); ++i) {
    recent[i] = mean_anomaly(origin - kHoursBack[i][1] * hour_, origin - kHoursBack[i][0] * hour_);
  }
  return recent;
}

OwnForecaster::Sample OwnForecaster::sample_at(int64_t origin, int64_t ahead, const Recent& recent) const {
  Sample sample;
  const int64_t same_time =
      origin + ahead % day_ - day_;  // the last completed step of the target's time of day
  const int64_t days = std::min<int64_t>(kLongDays, origin / day_);
  double sum = 0, week = 0;
  for (int64_t d = 0; d < days; ++d) {
    sum += series_.values[same_time - d * day_];
    if (d + 1 == kProfileDays) week = sum / kProfileDays;
  }
  sample.base = week;
  std::copy(recent.begin(), recent.end(), sample.features.begin());
  const int64_t week_before = origin + ahead - (ahead / (7 * day_) + 1) * 7 * day_;
  sample.features[6] = series_.values[same_time] - week;
  sample.features[7] = series_.values[same_time - day_] - week;
  sample.features[8] = series_.values[week_before] - week;
  sample.features[9] = sum / static_cast<double>(days) - week;
  const int64_t days_since_1970 = (series_.start_unix_s + (origin + ahead) * series_.step_s) / 86400;
  const int64_t weekday = (days_since_1970 + 4) % 7;  // 0: Sunday
  // A tenth of the base: coefficients of the size of the others.
  sample.features[10] = weekday == 6 ? 0.1 * week : 0;
  sample.features[11] = weekday == 0 ? 0.1 * week : 0;
  return sample;
}

// Step `step` has become known: it is the target of one origin of each group.
void OwnForecaster::learn(int64_t step) {
  const double weight = std::exp2(static_cast<double>(step) / (kHalfLifeHours * static_cast<double>(hour_)));
  const double error_weight =
      std::exp2(static_cast<double>(step) / (kErrorHalfLifeHours * static_cast<double>(hour_)));
  for (int group = 0; group < kGroups; ++group) {
    // Far horizons say much the same from one step to the next: each learns from every third.
    if (group >= kEveryStep && (step + group) % 3 != 0) continue;
    // Groups wider than a step meet each of their horizons in turn.
    const int64_t first = group < kHourly ? group * hour_ : (kHourly + (group - kHourly) * 24) * hour_;
    const int64_t width = group < kHourly ? hour_ : day_;
    const int64_t ahead = first + step * 7 % width;
    const int64_t origin = step - ahead;
    if (origin < (kProfileDays + 1) * day_) break;  // later groups reach further back still
    const Sample sample = sample_at(origin, ahead, recent_at(origin));
    const Vector& x = sample.features;
    const double target = series_.values[step] - sample.base;
    Regression& regression = regressions_[group];
    double error = target;
    for (int i = 0; i < kFeatures; ++i) error -= regression.coefficients[i] * x[i];
    regression.error_power += error_weight * error * error;
    regression.error_weight += error_weight;
    for (int i = 0; i < kFeatures; ++i) {
      const double weighted = weight * x[i];
      for (int j = 0; j < kFeatures; ++j) regression.gram[i][j] += weighted * x[j];
      regression.moment[i] += weighted * target;
    }
    regression.target_power += weight * target * target;
    regression.weight += weight;
  }
  if (step % day_ == 0) {
    for (int group = 0; group < kGroups; ++group) solve(regressions_[group], group);
  }
}

// Ridge regression towards the prior, by Cholesky: (G + r I) c = m + r prior, where r is worth kPriorSamples
// samples.
void OwnForecaster::solve(Regression& regression, int group) const {
  if (regression.target_power <= 0) return;  // a grid that never changes needs no correction
  const double newest =
      std::exp2(static_cast<double>(known_) / (kHalfLifeHours * static_cast<double>(hour_)));
  const double ridge = kPriorSamples * newest * regression.target_power / regression.weight;
  const Vector before = prior(group);
  std::array<Vector, kFeatures> factor = regression.gram;
  Vector solution = regression.moment;
  for (int i = 0; i < kFeatures; ++i) {
    factor[i][i] += ridge;
    solution[i] += ridge * before[i];
  }
  for (int i = 0; i < kFeatures; ++i) {
    for (int j = 0; j <= i; ++j) {
      double value = factor[i][j];
      for (int k = 0; k < j; ++k) value -= factor[i][k] * factor[j][k];
      factor[i][j] = i == j ? std::sqrt(value) : value / factor[j][j];
    }
  }
  for (int i = 0; i < kFeatures; ++i) {
    for (int k = 0; k < i; ++k) solution[i] -= factor[i][k] * solution[k];
    solution[i] /= factor[i][i];
  }
  for (int i = kFeatures - 1; i >= 0; --i) {
    for (int k = i + 1; k < kFeatures; ++k) solution[i] -= factor[k][i] * solution[k];
    solution[i] /= factor[i][i];
  }
  regression.coefficients = solution;
}

void OwnForecaster::advance(int64_t known) {
  if (known < known_) reset();
  for (; known_ < known; ++known_) {
    if (known_ < kProfileDays * day_) continue;
    double week = 0;
    for (int d = 1; d <= kProfileDays; ++d) week += series_.values[known_ - d * day_];
    anomaly_sums_.push_back(anomaly_sums_.back() + series_.values[known_] - week / kProfileDays);
    learn(known_);
  }
}

Forecast OwnForecaster::predict(int64_t known, int64_t horizon) {
  MOEBIUS_CHECK(known >= 0 && known <= static_cast<int64_t>(series_.values.size()), known, " steps of ",
                series_.values.size());
  // Eight days have to be known before anomalies are.
  if (known < (kProfileDays + 1) * day_) {
    return make_forecaster("seven_day", series_)->predict(known, horizon);
  }
  advance(known);
  Forecast forecast;
  forecast.values.reserve(horizon);
  forecast.deviations.reserve(horizon);
  const Recent recent = recent_at(known);
  for (int64_t ahead = 0; ahead < horizon; ++ahead) {
    const Regression& regression = regressions_[group_of(ahead)];
    const Sample sample = sample_at(known, ahead, recent);
    double value = sample.base;
    for (int i = 0; i < kFeatures; ++i) value += regression.coefficients[i] * sample.features[i];
    forecast.values.push_back(std::max(value, kLowestShare * sample.base));
    forecast.deviations.push_back(
        regression.error_weight > 0 ? std::sqrt(regression.error_power / regression.error_weight) : 0.0);
  }
  return forecast;
}

std::unique_ptr<Forecaster> make_own_forecaster(const Series& series) {
  return std::make_unique<OwnForecaster>(series);
}

}  // namespace moebius::energy::carbon
