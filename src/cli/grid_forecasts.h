// Plugs forecasts of energy/carbon into the queue: into its replay, and into what drives it.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "energy/carbon/feed.h"
#include "energy/carbon/forecaster.h"
#include "queue/outlook.h"

namespace moebius::cli {

// Time 0 of the replay is the begin of step `first_step` of the forecaster's series. Forecasts are kept, so
// that several policies share them.
class GridForecasts final : public queue::ForecastSource {
 public:
  GridForecasts(energy::carbon::Forecaster& forecaster, int64_t first_step, int64_t step_s)
      : forecaster_(forecaster), first_step_(first_step), step_s_(step_s) {}
  const queue::Outlook& at(double now_s, double until_s) override;

 private:
  energy::carbon::Forecaster& forecaster_;
  int64_t first_step_, step_s_;
  int64_t horizon_ = 0, kept_values_ = 0;
  std::unordered_map<int64_t, queue::Outlook> kept_;
};

// The grid as a feed knows it now; times are seconds since 1970. Where nothing is known yet, values are not
// numbers.
class LiveForecasts final : public queue::ForecastSource {
 public:
  explicit LiveForecasts(energy::carbon::Feed* feed) : feed_(feed) {}  // null: no grid
  const queue::Outlook& at(double now_s, double until_s) override;

 private:
  energy::carbon::Feed* feed_;
  queue::Outlook outlook_;
  double made_for_s_ = -1;
};

}  // namespace moebius::cli
