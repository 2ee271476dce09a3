#include "energy/carbon/forecaster.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/distance.h"
#include "base/error.h"
#include "base/philox.h"

namespace moebius::energy::carbon {
namespace {

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

class Oracle final : public Forecaster {
 public:
  Oracle(std::span<const double> series, const OracleNoise& noise) : values_(series.begin(), series.end()) {
    if (noise.share <= 0 || values_.empty()) return;
    const Philox random(noise.seed, "carbon forecast noise");
    const double deviation = noise.share * mean_of(series);
    for (size_t i = 0; i < values_.size(); ++i)
      values_[i] += deviation * static_cast<double>(random.normal(i));
  }
  Forecast predict(int64_t known, int64_t horizon) override {
    Forecast forecast;
    forecast.values.reserve(horizon);
    const auto last = static_cast<int64_t>(values_.size()) - 1;
    for (int64_t i = 0; i < horizon; ++i) forecast.values.push_back(values_[std::min(known + i, last)]);
    return forecast;
  }

 private:
  std::vector<double> values_;
};

// What can be said before a whole day is known.
Forecast flat(std::span<const double> past, int64_t horizon) {
  return {std::vector<double>(horizon, past.empty() ? 1.0 : past.back()), {}};
}

class Persistence final : public Forecaster {
 public:
  explicit Persistence(const Series& series) : series_(series.values), day_(86400 / series.step_s) {}
  Forecast predict(int64_t known, int64_t horizon) override {
    if (known < day_) return flat(series_.first(known), horizon);
    Forecast forecast;
    forecast.values.reserve(horizon);
    for (int64_t i = 0; i < horizon; ++i) forecast.values.push_back(series_[known - day_ + i % day_]);
    return forecast;
  }

 private:
  std::span<const double> series_;
  int64_t day_;
};

class SevenDay final : public Forecaster {
 public:
  explicit SevenDay(const Series& series) : series_(series.values), day_(86400 / series.step_s) {}
  Forecast predict(int64_t known, int64_t horizon) override {
    if (known < day_) return flat(series_.first(known), horizon);
    // profile[i]: mean over the whole days before `known`, at most seven, of the step i after `known`.
    const int64_t days = std::min<int64_t>(known / day_, 7);
    std::vector<double> profile(day_, 0.0);
    double recent = 0, usual = 0;
    for (int64_t i = 0; i < day_; ++i) {
      for (int64_t d = 1; d <= days; ++d) profile[i] += series_[known - d * day_ + i];
      profile[i] /= static_cast<double>(days);
      recent += series_[known - day_ + i];
      usual += profile[i];
    }
    const double level = recent / usual;
    Forecast forecast;
    forecast.values.reserve(horizon);
    for (int64_t i = 0; i < horizon; ++i) forecast.values.push_back(profile[i % day_] * level);
    return forecast;
  }

 private:
  std::span<const double> series_;
  int64_t day_;
};

}  // namespace

const std::vector<std::string>& forecaster_names() {
  static const std::vector<std::string> names{"oracle", "persistence", "seven_day", "own"};
  return names;
}

std::string canonical_forecaster_name(std::string_view name) {
  std::string plain(name);
  std::replace(plain.begin(), plain.end(), '-', '_');
  const auto& names = forecaster_names();
  if (std::find(names.begin(), names.end(), plain) != names.end()) return plain;
  const auto nearest = nearest_name(plain, names);
  throw_user_error("--forecast is '", name, "', which is none of oracle, persistence, seven_day, own",
                   nearest ? "; is it " + *nearest + "?" : std::string());
}

std::unique_ptr<Forecaster> make_forecaster(const std::string& name, const Series& series,
                                            const OracleNoise& noise) {
  MOEBIUS_CHECK_EQ(86400 % series.step_s, 0);
  if (name == "oracle") return std::make_unique<Oracle>(series.values, noise);
  if (name == "persistence") return std::make_unique<Persistence>(series);
  if (name == "seven_day") return std::make_unique<SevenDay>(series);
  MOEBIUS_CHECK_EQ(name, "own");
  return make_own_forecaster(series);
}

}  // namespace moebius::energy::carbon
