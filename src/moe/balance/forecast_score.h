// Forecasts held against what happened.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moe/balance/predictor.h"

namespace moebius::moe {

// How far a forecast was off.
struct ForecastError {
  double share = 0;    // mean over experts of |forecast - share| / share
  double largest = 0;  // the same of the largest share, which sets the time of a step across devices
};
// Shares below a tenth of the mean count as that, so that a dead expert does not decide everything.
ForecastError forecast_error(std::span<const double> forecast_E, std::span<const double> shares_E);

// Mean of |forecast - share| / share that is left when the forecast is right, because `slots` slots are dealt
// out at random: sqrt(2 / pi) of the standard deviation. Tokens of one text are alike, so real noise is
// larger.
double sampling_error(std::span<const double> shares_E, double slots);

// A predictor that is asked at every step and judged when its horizon has come: by the shares of that step,
// or by their mean over `smooth` steps from it on.
class ForecastScore {
 public:
  ForecastScore(const std::string& spec, int64_t num_experts, int64_t horizon, int64_t smooth = 1);
  // The next step's shares; the error of the forecast that fell due with it, once there is one.
  std::optional<ForecastError> observe(std::span<const double> shares_E);

 private:
  int64_t horizon_, smooth_;
  std::unique_ptr<LoadPredictor> predictor_;
  std::deque<std::vector<double>> forecasts_, recent_;
  std::vector<double> sum_;  // of recent_
};

}  // namespace moebius::moe
