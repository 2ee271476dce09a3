// Forecasts of expert load. A load share is the part of a layer's slots that one expert gets in a step; the
// shares of a layer sum to 1. After a first, restless phase of training they change slowly, so that the past
// tells them a thousand steps ahead (Cong et al. 2024, "Prediction Is All MoE Needs").
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moebius::moe {

// Of one layer, for one horizon. A pure function of what it observed.
class LoadPredictor {
 public:
  virtual ~LoadPredictor() = default;
  // The shares of the next step, one per expert.
  virtual void observe(std::span<const double> shares_E) = 0;
  // What is expected `horizon` steps after the last observed one; not negative, sums to 1.
  virtual std::vector<double> predict() const = 0;
};

// The kinds, with their parameters' defaults:
//   last          the last step's shares
//   mean:256      mean of the last W steps
//   exp:128       exponential mean with a half-life of H steps
//   ar:8:1024     autoregression of order P around each expert's mean of the last W steps; coefficients of
//   the
//                 layer's experts together, by Yule-Walker and Levinson-Durbin, iterated to the horizon
//   linear        weights of the last step, of means over 16, 64, 256 and 1,024 steps, and of 1 / E; learnt
//   for
//                 the horizon by recursive least squares with forgetting, from the mean over 256 steps on,
//                 which is used instead as long as its forecasts were the better ones of late
// UserError for anything else.
std::unique_ptr<LoadPredictor> make_predictor(const std::string& spec, int64_t num_experts, int64_t horizon);
// All kinds as they are above.
std::vector<std::string> predictor_specs();

}  // namespace moebius::moe
