// What a policy can see of the grid: the forecast that was made when it decides. Forecasts come from outside
// (energy/carbon, plugged in by the program), so that the queue knows nothing of their methods.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moebius::queue {

// Intensity over time: values of equal steps, constant inside a step. Step 0 begins at time `begin_s`.
class Outlook {
 public:
  Outlook() = default;
  // `deviations`: standard deviation of the error of each value, or empty where nothing is known about it.
  Outlook(int64_t begin_s, int64_t step_s, std::vector<double> values, std::vector<double> deviations = {});

  int64_t begin_s() const { return begin_s_; }
  int64_t step_s() const { return step_s_; }
  int64_t end_s() const { return begin_s_ + step_s_ * static_cast<int64_t>(values_.size()); }
  // begin_s() <= time < end_s().
  int64_t step_at(double time_s) const;
  double value_at(double time_s) const { return values_[step_at(time_s)]; }
  bool knows_its_error() const { return !deviations_.empty(); }
  // Begin of the step after the one that holds `time`.
  double next_border(double time_s) const {
    return static_cast<double>(begin_s_ + (step_at(time_s) + 1) * step_s_);
  }
  // Sum of value x seconds over [from, to).
  double integral(double from_s, double to_s) const { return until(to_s) - until(from_s); }

 private:
  double until(double time_s) const;

  int64_t begin_s_ = 0, step_s_ = 1;
  std::vector<double> values_, deviations_;
  std::vector<double> sums_;  // sums_[i]: of the steps before i, in value x seconds
};

// Makes forecasts. Implementations look at nothing after `now_s` (but for the oracle, whose name says so):
// the step that holds it is not complete and is forecast itself.
class ForecastSource {
 public:
  virtual ~ForecastSource() = default;
  // The forecast made at `now_s`, from the step that holds it on, at least up to `until_s`. The reference is
  // valid until the next call.
  virtual const Outlook& at(double now_s, double until_s) = 0;
};

}  // namespace moebius::queue
