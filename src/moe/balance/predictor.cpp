#include "moe/balance/predictor.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <deque>
#include <numeric>

#include "base/check.h"
#include "base/error.h"

namespace moebius::moe {
namespace {

using Shares = std::vector<double>;

Shares uniform(int64_t num_experts) {
  return Shares(static_cast<size_t>(num_experts), 1.0 / static_cast<double>(num_experts));
}

Shares as_shares(Shares values) {
  double sum = 0;
  for (double& value : values) sum += value = std::max(value, 0.0);
  if (sum <= 0) return uniform(static_cast<int64_t>(values.size()));
  for (double& value : values) value /= sum;
  return values;
}

// Mean of the last `size` steps; uniform before the first.
class SlidingMean {
 public:
  SlidingMean(int64_t num_experts, int64_t size) : sum_(static_cast<size_t>(num_experts)), size_(size) {}
  void add(std::span<const double> shares) {
    recent_.emplace_back(shares.begin(), shares.end());
    for (size_t e = 0; e < sum_.size(); ++e) sum_[e] += shares[e];
    if (static_cast<int64_t>(recent_.size()) <= size_) return;
    for (size_t e = 0; e < sum_.size(); ++e) sum_[e] -= recent_.front()[e];
    recent_.pop_front();
  }
  double operator[](size_t e) const {
    return recent_.empty() ? 1.0 / static_cast<double>(sum_.size())
                           : sum_[e] / static_cast<double>(recent_.size());
  }
  const std::deque<Shares>& recent() const { return recent_; }

 private:
  Shares sum_;
  int64_t size_;
  std::deque<Shares> recent_;
};

class Mean final : public LoadPredictor {
 public:
  Mean(int64_t num_experts, int64_t size) : num_experts_(num_experts), mean_(num_experts, size) {}
  void observe(std::span<const double> shares) override { mean_.add(shares); }
  Shares predict() const override {
    Shares values = uniform(num_experts_);
    for (size_t e = 0; e < values.size(); ++e) values[e] = mean_[e];
    return as_shares(std::move(values));
  }

 private:
  int64_t num_experts_;
  SlidingMean mean_;
};

class Exponential final : public LoadPredictor {
 public:
  Exponential(int64_t num_experts, int64_t half_life)
      : rate_(1 - std::exp2(-1.0 / static_cast<double>(half_life))), level_(uniform(num_experts)) {}
  void observe(std::span<const double> shares) override {
    // The mean of all until the memory is full, so that the begin does not linger.
    const double rate = std::max(rate_, 1.0 / static_cast<double>(++num_observed_));
    for (size_t e = 0; e < level_.size(); ++e) level_[e] += rate * (shares[e] - level_[e]);
  }
  Shares predict() const override { return as_shares(level_); }

 private:
  double rate_;
  int64_t num_observed_ = 0;
  Shares level_;
};

class Autoregression final : public LoadPredictor {
 public:
  Autoregression(int64_t num_experts, int64_t horizon, int64_t order, int64_t size)
      : num_experts_(num_experts),
        horizon_(horizon),
        order_(static_cast<size_t>(order)),
        mean_(num_experts, size) {}

  void observe(std::span<const double> shares) override {
    mean_.add(shares);
    if (num_observed_++ % kRefit == 0) fit();
  }

  Shares predict() const override {
    const auto& recent = mean_.recent();
    Shares values = uniform(num_experts_);
    if (recent.empty()) return values;
    for (size_t e = 0; e < values.size(); ++e) {
      values[e] = mean_[e];
      for (size_t k = 0; k < std::min(order_, recent.size()); ++k)
        values[e] += at_horizon_[k] * (recent[recent.size() - 1 - k][e] - mean_[e]);
    }
    return as_shares(std::move(values));
  }

 private:
  static constexpr int64_t kRefit = 32;  // steps

  // Autocovariances of lags 0 to order, all experts together; divided by the window's length whatever the
  // lag, which keeps the model stable.
  std::vector<double> covariances() const {
    const auto& recent = mean_.recent();
    std::vector<double> result(order_ + 1);
    for (size_t lag = 0; lag <= order_; ++lag)
      for (size_t t = lag; t < recent.size(); ++t)
        for (size_t e = 0; e < recent[t].size(); ++e)
          result[lag] += (recent[t][e] - mean_[e]) * (recent[t - lag][e] - mean_[e]);
    return result;
  }

  void fit() {
    coefficients_.assign(order_, 0);
    solve();
    at_horizon_.assign(order_, 0);
    for (size_t k = 0; k < order_; ++k) {
      std::vector<double> past(order_);
      past[k] = 1;
      for (int64_t step = 0; step < horizon_; ++step) {
        const double next = std::inner_product(past.begin(), past.end(), coefficients_.begin(), 0.0);
        std::rotate(past.rbegin(), past.rbegin() + 1, past.rend());
        past[0] = next;
      }
      at_horizon_[k] = past[0];
    }
  }

  // Levinson-Durbin.
  void solve() {
    if (mean_.recent().size() < 4 * order_) return;
    const std::vector<double> r = covariances();
    double error = r[0];
    for (size_t k = 0; k < order_ && error > 1e-18; ++k) {
      double sum = r[k + 1];
      for (size_t j = 0; j < k; ++j) sum -= coefficients_[j] * r[k - j];
      const double reflection = sum / error;
      std::vector<double> updated = coefficients_;
      updated[k] = reflection;
      for (size_t j = 0; j < k; ++j) updated[j] -= reflection * coefficients_[k - 1 - j];
      coefficients_ = std::move(updated);
      error *= 1 - reflection * reflection;
    }
  }

  int64_t num_experts_, horizon_;
  size_t order_;
  int64_t num_observed_ = 0;
  SlidingMean mean_;
  std::vector<double> coefficients_;
  std::vector<double> at_horizon_;  // what each of the last steps adds to the forecast
};

class OnlineLinear final : public LoadPredictor {
 public:
  OnlineLinear(int64_t num_experts, int64_t horizon) : num_experts_(num_experts), horizon_(horizon) {
    for (const int64_t size : kMeans) means_.emplace_back(num_experts, size);
    weights_[kPrior] = 1;
    for (size_t i = 0; i < kFeatures; ++i) inverse_[i][i] = kPriorVariance;
  }

  void observe(std::span<const double> shares) override {
    if (static_cast<int64_t>(waiting_.size()) == horizon_) {
      const std::vector<Example> then = std::move(waiting_.front());
      waiting_.pop_front();
      judge(then, shares);
      if (num_learnt_++ % kStride == 0)
        for (size_t e = 0; e < then.size(); ++e)
          learn(then[e].features, shares[e] * static_cast<double>(num_experts_));
    }
    last_.assign(shares.begin(), shares.end());
    for (SlidingMean& mean : means_) mean.add(shares);
    std::vector<Example> now;
    for (size_t e = 0; e < shares.size(); ++e) {
      const Features x = features(e);
      now.push_back({x, std::inner_product(weights_.begin(), weights_.end(), x.begin(), 0.0)});
    }
    waiting_.push_back(std::move(now));
  }

  Shares predict() const override {
    Shares values = uniform(num_experts_);
    if (waiting_.empty()) return values;
    const bool learnt = learnt_error_ < prior_error_;
    for (size_t e = 0; e < values.size(); ++e) {
      const Example& now = waiting_.back()[e];
      values[e] = learnt ? now.learnt : now.features[kPrior];
    }
    return as_shares(std::move(values));
  }

 private:
  static constexpr std::array<int64_t, 4> kMeans = {16, 64, 256, 1024};
  static constexpr size_t kFeatures = kMeans.size() + 2;
  static constexpr size_t kPrior = 3;              // the mean over 256 steps
  static constexpr double kPriorVariance = 0.05;   // of a weight
  static constexpr double kForgetting = 0.9998;    // per example
  static constexpr double kNoise = 0.01;           // variance of a load around its forecast, as a prior
  static constexpr int64_t kStride = 4;            // neighbouring steps say much the same
  static constexpr double kMemory = 0.995;         // of a step, in judging
  using Features = std::array<double, kFeatures>;  // as multiples of the mean share

  struct Example {
    Features features;
    double learnt;  // what the weights of that step made of them
  };

  // Which forecast was better of late: that of the weights, or the mean that they began with.
  void judge(const std::vector<Example>& then, std::span<const double> shares) {
    learnt_error_ *= kMemory;
    prior_error_ *= kMemory;
    for (size_t e = 0; e < then.size(); ++e) {
      const double load = shares[e] * static_cast<double>(num_experts_);
      learnt_error_ += std::abs(then[e].learnt - load);
      prior_error_ += std::abs(then[e].features[kPrior] - load);
    }
  }

  Features features(size_t e) const {
    Features x{};
    const auto scale = static_cast<double>(num_experts_);
    x[0] = last_[e] * scale;
    for (size_t i = 0; i < kMeans.size(); ++i) x[i + 1] = means_[i][e] * scale;
    x[kFeatures - 1] = 1;
    return x;
  }

  // Recursive least squares.
  void learn(const Features& x, double target) {
    Features gain{};
    double spread = kForgetting * kNoise;
    for (size_t i = 0; i < kFeatures; ++i) {
      for (size_t j = 0; j < kFeatures; ++j) gain[i] += inverse_[i][j] * x[j];
      spread += gain[i] * x[i];
    }
    const double error = target - std::inner_product(weights_.begin(), weights_.end(), x.begin(), 0.0);
    for (size_t i = 0; i < kFeatures; ++i) weights_[i] += gain[i] / spread * error;
    double largest = 0;
    for (size_t i = 0; i < kFeatures; ++i) {
      for (size_t j = 0; j < kFeatures; ++j)
        inverse_[i][j] = (inverse_[i][j] - gain[i] * gain[j] / spread) / kForgetting;
      largest = std::max(largest, inverse_[i][i]);
    }
    // Forgetting must not make it surer of nothing than it was at the begin.
    if (largest > kPriorVariance)
      for (Features& row : inverse_)
        for (double& value : row) value *= kPriorVariance / largest;
  }

  int64_t num_experts_, horizon_;
  int64_t num_learnt_ = 0;
  Shares last_;
  std::vector<SlidingMean> means_;
  std::deque<std::vector<Example>> waiting_;   // of the last `horizon` steps, per expert
  double learnt_error_ = 0, prior_error_ = 0;  // fading sums
  Features weights_{};
  std::array<Features, kFeatures> inverse_{};
};

// "ar:8:1024" to {8, 1024}.
std::vector<int64_t> parameters_of(const std::string& spec, std::vector<int64_t> values) {
  size_t at = spec.find(':');
  for (size_t i = 0; at != std::string::npos; ++i) {
    const size_t end = std::min(spec.find(':', at + 1), spec.size());
    int64_t value = 0;
    const char* const last = spec.data() + end;
    const auto [stop, error] = std::from_chars(spec.data() + at + 1, last, value);
    if (i >= values.size() || error != std::errc() || stop != last || value < 1 || value > 100000)
      throw_user_error("predictor '", spec, "': ", spec.substr(at + 1, end - at - 1),
                       " is not a number of steps from 1 to 100000 that it takes");
    values[i] = value;
    at = end < spec.size() ? end : std::string::npos;
  }
  return values;
}

}  // namespace

std::vector<std::string> predictor_specs() {
  return {"last", "mean:256", "exp:128", "ar:8:1024", "linear"};
}

std::unique_ptr<LoadPredictor> make_predictor(const std::string& spec, int64_t num_experts, int64_t horizon) {
  MOEBIUS_CHECK_GE(num_experts, 1);
  MOEBIUS_CHECK_GE(horizon, 1);
  const std::string kind = spec.substr(0, spec.find(':'));
  if (kind == "last") {
    parameters_of(spec, {});
    return std::make_unique<Mean>(num_experts, 1);
  }
  if (kind == "mean") return std::make_unique<Mean>(num_experts, parameters_of(spec, {256})[0]);
  if (kind == "exp") return std::make_unique<Exponential>(num_experts, parameters_of(spec, {128})[0]);
  if (kind == "ar") {
    const std::vector<int64_t> values = parameters_of(spec, {8, 1024});
    return std::make_unique<Autoregression>(num_experts, horizon, values[0], values[1]);
  }
  if (kind == "linear") {
    parameters_of(spec, {});
    return std::make_unique<OnlineLinear>(num_experts, horizon);
  }
  throw_user_error("predictor '", spec,
                   "' is not known; give last, mean:STEPS, exp:HALF_LIFE, ar:ORDER:STEPS or "
                   "linear");
}

}  // namespace moebius::moe
