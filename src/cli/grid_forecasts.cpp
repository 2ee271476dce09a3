#include "cli/grid_forecasts.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

const queue::Outlook& LiveForecasts::at(double now_s, double until_s) {
  const bool is_new = feed_ != nullptr && feed_->refresh(now_s);
  const bool holds = made_for_s_ >= 0 && !is_new && now_s >= static_cast<double>(outlook_.begin_s()) &&
                     now_s < static_cast<double>(outlook_.begin_s() + outlook_.step_s());
  if (holds && static_cast<double>(outlook_.end_s()) >= until_s) return outlook_;
  made_for_s_ = now_s;
  if (holds) until_s += 86400;  // asked for more and more: a day ahead at a time
  if (auto view = feed_ == nullptr ? std::nullopt : feed_->view(now_s, until_s)) {
    outlook_ = queue::Outlook(view->begin_unix_s, view->step_s, std::move(view->values),
                              std::move(view->deviations));
  } else {
    constexpr int64_t kStep = 3600;
    const auto begin = static_cast<int64_t>(std::floor(now_s / kStep)) * kStep;
    const auto steps = static_cast<size_t>((until_s - static_cast<double>(begin)) / kStep) + 2;
    outlook_ =
        queue::Outlook(begin, kStep, std::vector<double>(steps, std::numeric_limits<double>::quiet_NaN()));
  }
  return outlook_;
}

}  // namespace moebius::cli
