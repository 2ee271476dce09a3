#include "cli/grid_forecasts.h"

#include <algorithm>
#include <cmath>

namespace moebius::cli {

const queue::Outlook& GridForecasts::at(double now_s, double until_s) {
  constexpr int64_t kMaxKeptValues = int64_t{1} << 23;
  const auto step = static_cast<int64_t>(std::floor(now_s / static_cast<double>(step_s_)));
  horizon_ =
      std::max(horizon_, static_cast<int64_t>(std::ceil(until_s / static_cast<double>(step_s_))) - step + 1);
  const auto found = kept_.find(step);
  if (found != kept_.end() && static_cast<double>(found->second.end_s()) >= until_s) return found->second;
  if (kept_values_ + horizon_ > kMaxKeptValues) {
    kept_.clear();
    kept_values_ = 0;
  }
  kept_values_ += horizon_;
  energy::carbon::Forecast forecast = forecaster_.predict(first_step_ + step, horizon_);
  queue::Outlook outlook(step * step_s_, step_s_, std::move(forecast.values), std::move(forecast.deviations));
  return kept_.insert_or_assign(step, std::move(outlook)).first->second;
}

}  // namespace moebius::cli
