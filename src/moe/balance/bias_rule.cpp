#include "moe/balance/bias_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace moebius::moe {
namespace {

void recentre(std::span<double> bias) {
  const double mean = std::accumulate(bias.begin(), bias.end(), 0.0) / static_cast<double>(bias.size());
  for (double& value : bias) value -= mean;
}

}  // namespace

void sign_bias_update(std::span<const double> shares, double rate, std::span<double> bias) {
  MOEBIUS_CHECK_EQ(shares.size(), bias.size());
  const double mean = std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(shares.size());
  for (size_t e = 0; e < bias.size(); ++e) {
    const double missing = mean - shares[e];
    bias[e] += rate * (missing > 0 ? 1 : missing < 0 ? -1 : 0);
  }
  recentre(bias);
}

ForecastBias::ForecastBias(const Options& options, int64_t num_experts)
    : options_(options), num_experts_(num_experts) {}

std::vector<double> ForecastBias::forecast() const {
  std::vector<double> load(static_cast<size_t>(num_experts_), 1);
  for (size_t e = 0; e < state_.level.size(); ++e)
    load[e] = std::max(0.0, state_.level[e] + options_.lead * state_.trend[e]);
  return load;
}

void ForecastBias::set_state(State state) {
  MOEBIUS_CHECK_EQ(state.level.size(), state.trend.size());
  state_ = std::move(state);
}

void ForecastBias::update(std::span<const double> shares, std::span<double> bias) {
  MOEBIUS_CHECK_EQ(static_cast<int64_t>(shares.size()), num_experts_);
  MOEBIUS_CHECK_EQ(shares.size(), bias.size());
  const auto scale = static_cast<double>(num_experts_);
  if (state_.level.empty()) {
    for (const double share : shares) state_.level.push_back(share * scale);
    state_.trend.assign(shares.size(), 0);
  }
  for (size_t e = 0; e < shares.size(); ++e) {
    const double before = state_.level[e];
    state_.level[e] += state_.trend[e];
    state_.level[e] += options_.smoothing * (shares[e] * scale - state_.level[e]);
    state_.trend[e] += options_.trend * (state_.level[e] - before - state_.trend[e]);
  }
  const std::vector<double> load = forecast();
  for (size_t e = 0; e < bias.size(); ++e)
    bias[e] += options_.rate * std::clamp(options_.gain * (1 - load[e]), -options_.limit, options_.limit);
  recentre(bias);
}

std::vector<int64_t> capacity_hints(std::span<const double> shares, int64_t num_slots, double deviations) {
  std::vector<int64_t> rows;
  for (const double share : shares) {
    const double mean = share * static_cast<double>(num_slots);
    const double needed = mean + deviations * std::sqrt(std::max(mean * (1 - share), 0.0));
    rows.push_back(std::min(num_slots, static_cast<int64_t>(std::ceil(needed))));
  }
  return rows;
}

}  // namespace moebius::moe
