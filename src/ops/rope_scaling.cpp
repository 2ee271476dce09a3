#include "ops/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moebius::ops {
namespace {

using Kind = RopeScaling::Kind;

constexpr double kTurn = 2 * std::numbers::pi;

double mscale_of(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double dynamic_theta(int64_t dim, double theta, const RopeScaling& scaling, int64_t context) {
  const double d = static_cast<double>(dim), original = static_cast<double>(scaling.original_context);
  const double seen = std::max(static_cast<double>(context), original);
  // A single pair has frequency 1 whatever the base.
  if (dim <= 2) return theta;
  return theta * std::pow(scaling.factor * seen / original - (scaling.factor - 1), d / (d - 2));
}

// The channel pair that makes this many turns over the original context, as a real number.
double pair_of_turns(double turns, int64_t dim, double theta, const RopeScaling& scaling) {
  return static_cast<double>(dim) *
         std::log(static_cast<double>(scaling.original_context) / (turns * kTurn)) / (2 * std::log(theta));
}

void apply_yarn(std::vector<double>& frequencies, int64_t dim, double theta, const RopeScaling& scaling) {
  double low = pair_of_turns(scaling.beta_fast, dim, theta, scaling);
  double high = pair_of_turns(scaling.beta_slow, dim, theta, scaling);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // no division by zero
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double divided = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / scaling.factor * divided + frequencies[i] * (1 - divided);
  }
}

void apply_llama3(std::vector<double>& frequencies, const RopeScaling& scaling) {
  const double original = static_cast<double>(scaling.original_context);
  for (double& frequency : frequencies) {
    const double wavelength = kTurn / frequency;
    if (wavelength > original / scaling.low_freq_factor) {
      frequency /= scaling.factor;
    } else if (wavelength >= original / scaling.high_freq_factor) {
      const double kept = (original / wavelength - scaling.low_freq_factor) /
                          (scaling.high_freq_factor - scaling.low_freq_factor);
      frequency = (1 - kept) * frequency / scaling.factor + kept * frequency;
    }
  }
}

}  // namespace

std::vector<double> rope_frequencies(int64_t dim, double theta, const RopeScaling& scaling, int64_t context) {
  const double base = scaling.kind == Kind::dynamic ? dynamic_theta(dim, theta, scaling, context) : theta;
  std::vector<double> frequencies(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  if (scaling.kind == Kind::linear)
    for (double& frequency : frequencies) frequency /= scaling.factor;
  if (scaling.kind == Kind::yarn) apply_yarn(frequencies, dim, theta, scaling);
  if (scaling.kind == Kind::llama3) apply_llama3(frequencies, scaling);
  return frequencies;
}

double rope_attention_factor(const RopeScaling& scaling) {
  if (scaling.kind != Kind::yarn) return 1.0;
  if (scaling.attention_factor > 0) return scaling.attention_factor;
  if (scaling.mscale > 0 && scaling.mscale_all_dim > 0)
    return mscale_of(scaling.factor, scaling.mscale) / mscale_of(scaling.factor, scaling.mscale_all_dim);
  return mscale_of(scaling.factor, 1.0);
}

double rope_score_factor(const RopeScaling& scaling) {
  if (scaling.kind == Kind::none || scaling.mscale_all_dim == 0) return 1.0;
  const double mscale = mscale_of(scaling.factor, scaling.mscale_all_dim);
  return mscale * mscale;
}

}  // namespace moebius::ops
