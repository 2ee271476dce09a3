// How the selection bias of a router answers the load of its experts (on the host; the sign rule on the
// device is moe/load_statistics.h), and how many rows experts should make room for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moebius::moe {

// bias_e += rate * sign(mean load - load_e), then recentred to zero mean (Wang et al. 2024).
void sign_bias_update(std::span<const double> shares_E, double rate, std::span<double> bias_E);

// Driven by a forecast of the load: level and trend of each expert (Holt's linear method) give the load that
// is expected `lead` steps ahead under the present bias, and
//   bias_e += rate * clamp(gain * (1 - forecast_e * E), -limit, limit), then recentred.
// Far from balance it moves up to `limit` times as fast as the sign rule, near balance it comes to rest
// instead of swinging, and the level averages out the noise of single steps.
class ForecastBias {
 public:
  struct Options {
    double rate = 0.001;
    double gain = 20;  // full speed of the sign rule at 5 % from the mean
    double limit = 10;
    double smoothing = 0.2;  // share of a step in the level
    double trend = 0.05;     // and of the level's change in the trend
    double lead = 2;         // steps
  };
  struct State {  // what a checkpoint has to keep
    std::vector<double> level,
        trend;  // per expert, as multiples of the mean load; empty before the first step
  };

  ForecastBias(const Options& options, int64_t num_experts);
  void update(std::span<const double> shares_E, std::span<double> bias_E);
  // The expected load of each expert, as a multiple of the mean.
  std::vector<double> forecast() const;
  const State& state() const { return state_; }
  void set_state(State state);

 private:
  Options options_;
  int64_t num_experts_;
  State state_;
};

// Rows per expert that suffice for `num_slots` slots dealt out by the expected shares, up to `deviations`
// standard deviations of chance.
std::vector<int64_t> capacity_hints(std::span<const double> shares_E, int64_t num_slots,
                                    double deviations = 4);

}  // namespace moebius::moe
