#include "queue/outlook.h"

#include <cmath>

#include "base/check.h"

namespace moebius::queue {

Outlook::Outlook(int64_t begin_s, int64_t step_s, std::vector<double> values, std::vector<double> deviations)
    : begin_s_(begin_s), step_s_(step_s), values_(std::move(values)), deviations_(std::move(deviations)) {
  MOEBIUS_CHECK(deviations_.empty() || deviations_.size() == values_.size());
  sums_.reserve(values_.size() + 1);
  sums_.push_back(0);
  for (const double value : values_) sums_.push_back(sums_.back() + value * static_cast<double>(step_s_));
}

int64_t Outlook::step_at(double time_s) const {
  const auto step = static_cast<int64_t>(
      std::floor((time_s - static_cast<double>(begin_s_)) / static_cast<double>(step_s_)));
  MOEBIUS_CHECK(step >= 0 && step < static_cast<int64_t>(values_.size()), "time ", time_s, " is not in [",
                begin_s_, ", ", end_s(), ")");
  return step;
}

double Outlook::until(double time_s) const {
  const double steps = (time_s - static_cast<double>(begin_s_)) / static_cast<double>(step_s_);
  const auto whole = static_cast<int64_t>(std::floor(steps));
  MOEBIUS_CHECK(whole >= 0 && steps <= static_cast<double>(values_.size()), "time ", time_s, " is not in [",
                begin_s_, ", ", end_s(), "]");
  const double inside = time_s - static_cast<double>(begin_s_ + whole * step_s_);
  return sums_[whole] + (inside > 0 ? values_[whole] * inside : 0);
}

}  // namespace moebius::queue
