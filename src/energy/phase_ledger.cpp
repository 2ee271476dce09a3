#include "energy/phase_ledger.h"

#include <algorithm>
#include <cmath>

namespace moebius::energy {

namespace {
constexpr double kFading = 0.9;       // of a mean's former samples, per window
constexpr double kFewestSamples = 3;  // for a mean of its own
// Halves of a window that differ by more are not the same power. On an H200 the means of halves of 1.5 s
// differ by some 5 %.
constexpr double kSteady = 0.1;
}  // namespace

void PhaseLedger::add_span(const PhaseSpan& span) {
  PhaseSpan kept = span;
  if (!spans_.empty()) kept.begin_seconds = std::max(kept.begin_seconds, spans_.back().end_seconds);
  if (kept.end_seconds > kept.begin_seconds) spans_.push_back(kept);
}

void PhaseLedger::add_power(double seconds, double watts) {
  if (!power_.empty() && seconds <= power_.back().seconds) return;
  power_.push_back({seconds, watts});
}

void PhaseLedger::add_counter(double seconds, double joules) {
  if (!counter_.empty() && seconds <= counter_.back().seconds) return;
  counter_.push_back({seconds, joules});
}

std::vector<PhaseLedger::Window> PhaseLedger::settle(double until, bool finish) {
  std::vector<Window> windows;
  const double least = power_.empty() ? 0 : options_.window_seconds;
  if (options_.has_counter) {
    while (counter_.size() > 1) {
      // The nearest later reading that makes the window long enough; at the end, the last one.
      size_t end = 1;
      while (end < counter_.size() && counter_[end].seconds - counter_[0].seconds < least) ++end;
      if (end == counter_.size()) {
        if (!finish) break;
        end = counter_.size() - 1;
      }
      if (counter_[end].seconds > until) break;
      windows.push_back(
          settle_window(counter_[0].seconds, counter_[end].seconds, counter_[end].value - counter_[0].value));
      counter_.erase(counter_.begin(), counter_.begin() + static_cast<std::ptrdiff_t>(end));
    }
  } else if (!power_.empty()) {
    if (!settled_until_) settled_until_ = power_.front().seconds;
    // The last sample's reach is known when the next one is there.
    const double end = std::min(until, power_.back().seconds);
    if (end - *settled_until_ >= least || (finish && end > *settled_until_)) {
      windows.push_back(settle_window(*settled_until_, end, std::nullopt));
      settled_until_ = end;
    }
  }
  if (!windows.empty()) forget(windows.back().end_seconds);
  return windows;
}

PhaseLedger::Window PhaseLedger::settle_window(double begin, double end, std::optional<double> joules) {
  Window window{begin, end, {}};
  PerPhase time{};
  double at = begin;
  for (const PhaseSpan& span : spans_) {
    const double from = std::max(span.begin_seconds, at), to = std::min(span.end_seconds, end);
    if (to <= from) continue;
    time[static_cast<size_t>(Phase::kIdle)] += from - at;
    time[static_cast<size_t>(span.phase)] += to - from;
    at = to;
  }
  time[static_cast<size_t>(Phase::kIdle)] += end - at;

  const double sampled = power_integral(begin, end);
  PerPhase shares = relative_power(begin, end);
  for (size_t i = 0; i < kNumPhases; ++i) shares[i] *= time[i];
  if (sum_of(shares) <= 0) shares = time;  // only phases at no power
  const double whole = sum_of(shares), all = joules.value_or(sampled);
  for (size_t i = 0; i < kNumPhases; ++i) {
    window.joules[i] = all * shares[i] / whole;
    joules_[i] += window.joules[i];
    seconds_[i] += time[i];
  }
  if (joules) {
    counter_total_ += *joules;
    any_counter_ = true;
  }
  if (sampled > 0) {
    sampled_total_ += sampled;
    any_power_ = true;
  }
  return window;
}

// Power of each phase over the window's mean.
PerPhase PhaseLedger::relative_power(double begin, double end) {
  PerPhase sum{}, count{}, half_sum{}, half_count{};  // of the halves: the first two
  auto span = spans_.begin();
  for (const Point& point : power_) {
    if (point.seconds < begin || point.seconds >= end) continue;
    while (span != spans_.end() && span->end_seconds <= point.seconds) ++span;
    const bool inside = span != spans_.end() && span->begin_seconds <= point.seconds;
    const auto phase = static_cast<size_t>(inside ? span->phase : Phase::kIdle);
    sum[phase] += point.value;
    count[phase] += 1;
    const size_t half = point.seconds < (begin + end) / 2 ? 0 : 1;
    half_sum[half] += point.value;
    half_count[half] += 1;
  }
  const double samples = sum_of(count), mean = samples > 0 ? sum_of(sum) / samples : 0;
  const bool steady = half_count[0] > 0 && half_count[1] > 0 &&
                      std::abs(half_sum[0] / half_count[0] - half_sum[1] / half_count[1]) <= kSteady * mean;
  if (steady && mean > 0) {
    for (size_t i = 0; i < kNumPhases; ++i) {
      power_sum_[i] = kFading * power_sum_[i] + sum[i] / mean;
      power_weight_[i] = kFading * power_weight_[i] + count[i];
    }
  }
  PerPhase relative{};
  for (size_t i = 0; i < kNumPhases; ++i) {
    const bool own = !steady && count[i] >= kFewestSamples && mean > 0;
    const bool learned = power_weight_[i] >= kFewestSamples;
    relative[i] = own ? sum[i] / count[i] / mean : learned ? power_sum_[i] / power_weight_[i] : 1;
  }
  return relative;
}

double PhaseLedger::power_integral(double begin, double end) const {
  double joules = 0;
  // The first sample whose reach does not end before `begin`.
  auto sample = std::lower_bound(power_.begin(), power_.end(), begin,
                                 [](const Point& p, double t) { return p.seconds < t; });
  if (sample != power_.begin()) --sample;
  for (double at = begin; sample != power_.end() && at < end; ++sample) {
    const auto next = sample + 1;
    const double reach = next == power_.end() ? end : std::min(end, (sample->seconds + next->seconds) / 2);
    if (reach <= at) continue;
    joules += sample->value * (reach - at);
    at = reach;
  }
  return joules;
}

void PhaseLedger::forget(double before) {
  while (!spans_.empty() && spans_.front().end_seconds <= before) spans_.pop_front();
  // One sample before stays: its reach goes on.
  while (power_.size() > 1 && power_[1].seconds <= before) power_.pop_front();
}

std::optional<double> PhaseLedger::counter_joules() const {
  return any_counter_ ? std::optional(counter_total_) : std::nullopt;
}

std::optional<double> PhaseLedger::sampled_joules() const {
  return any_power_ ? std::optional(sampled_total_) : std::nullopt;
}

}  // namespace moebius::energy
