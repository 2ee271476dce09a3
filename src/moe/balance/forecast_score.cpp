#include "moe/balance/forecast_score.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace moebius::moe {

ForecastError forecast_error(std::span<const double> forecast, std::span<const double> shares) {
  MOEBIUS_CHECK_EQ(forecast.size(), shares.size());
  const double least = 0.1 / static_cast<double>(shares.size());
  ForecastError error;
  for (size_t e = 0; e < shares.size(); ++e)
    error.share += std::abs(forecast[e] - shares[e]) / std::max(shares[e], least);
  error.share /= static_cast<double>(shares.size());
  const double largest = *std::max_element(shares.begin(), shares.end());
  error.largest =
      std::abs(*std::max_element(forecast.begin(), forecast.end()) - largest) / std::max(largest, least);
  return error;
}

double sampling_error(std::span<const double> shares, double slots) {
  const double least = 0.1 / static_cast<double>(shares.size());
  double sum = 0;
  for (const double share : shares) sum += std::sqrt(share * (1 - share) / slots) / std::max(share, least);
  return std::sqrt(2 / M_PI) * sum / static_cast<double>(shares.size());
}

ForecastScore::ForecastScore(const std::string& spec, int64_t num_experts, int64_t horizon, int64_t smooth)
    : horizon_(horizon),
      smooth_(smooth),
      predictor_(make_predictor(spec, num_experts, horizon)),
      sum_(static_cast<size_t>(num_experts)) {
  MOEBIUS_CHECK_GE(smooth, 1);
}

std::optional<ForecastError> ForecastScore::observe(std::span<const double> shares) {
  recent_.emplace_back(shares.begin(), shares.end());
  for (size_t e = 0; e < sum_.size(); ++e) sum_[e] += shares[e];
  if (static_cast<int64_t>(recent_.size()) > smooth_) {
    for (size_t e = 0; e < sum_.size(); ++e) sum_[e] -= recent_.front()[e];
    recent_.pop_front();
  }
  std::optional<ForecastError> error;
  // The oldest forecast was made before the step that is horizon + smooth - 1 steps back.
  if (static_cast<int64_t>(forecasts_.size()) == horizon_ + smooth_ - 1) {
    std::vector<double> mean = sum_;
    for (double& value : mean) value /= static_cast<double>(smooth_);
    error = forecast_error(forecasts_.front(), mean);
    forecasts_.pop_front();
  }
  predictor_->observe(shares);
  forecasts_.push_back(predictor_->predict());
  return error;
}

}  // namespace moebius::moe
