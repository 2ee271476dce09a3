#include "energy/phase_ledger.h"

#include <gtest/gtest.h>

#include <cmath>

namespace moebius::energy {
namespace {

double of(const PerPhase& values, Phase phase) {
  return values[static_cast<size_t>(phase)];
}

// A device whose true power is known in every phase, seen through sensors like NVML's.
struct Device {
  static constexpr double kForward = 600, kBackward = 520, kOptimizer = 310, kIdle = 90;
  // A step: 31 ms, 58 ms, 7 ms, 4 ms of nothing.
  static constexpr double kEnds[] = {0.031, 0.089, 0.096, 0.100};

  static double watts(double t) {
    const double at = std::fmod(t, 0.1);
    return at < kEnds[0] ? kForward : at < kEnds[1] ? kBackward : at < kEnds[2] ? kOptimizer : kIdle;
  }
  // Exact energy since 0.
  static double joules(double t) {
    const double steps = std::floor(t / 0.1), at = t - steps * 0.1;
    const double step = 0.031 * kForward + 0.058 * kBackward + 0.007 * kOptimizer + 0.004 * kIdle;
    double sum = steps * step, from = 0;
    constexpr double kWatts[] = {kForward, kBackward, kOptimizer, kIdle};
    for (int i = 0; i < 4; ++i) {
      sum += std::max(0.0, std::min(at, kEnds[i]) - from) * kWatts[i];
      from = kEnds[i];
    }
    return sum;
  }
};

PhaseLedger follow(double seconds, double sensor_factor, PhaseLedger::Options options = {}) {
  PhaseLedger ledger(options);
  ledger.add_counter(0, 0);
  double next_sample = 0, shown = 0, refreshed = 0;
  for (int step = 0; step * 0.1 < seconds; ++step) {
    const double t = step * 0.1;
    ledger.add_span({Phase::kForward, t, t + 0.031});
    ledger.add_span({Phase::kBackward, t + 0.031, t + 0.089});
    ledger.add_span({Phase::kOptimizer, t + 0.089, t + 0.096});
    for (; next_sample < t + 0.1; next_sample += 0.0233) {
      ledger.add_power(next_sample, sensor_factor * Device::watts(next_sample));
      // The counter is renewed every 97 ms and seen with the next sample.
      if (next_sample - refreshed >= 0.097) {
        refreshed += 0.097 * std::floor((next_sample - refreshed) / 0.097);
        const double value = Device::joules(refreshed);
        if (value != shown) ledger.add_counter(next_sample, value);
        shown = value;
      }
    }
    ledger.settle(t + 0.1);
  }
  ledger.settle(seconds, /*finish=*/true);
  return ledger;
}

TEST(PhaseLedger, phases_add_up_to_the_counter_and_keep_their_proportions) {
  const PhaseLedger ledger = follow(40, 0.9);  // a sensor that shows 10 % too little
  const double truth = Device::joules(40);
  EXPECT_NEAR(sum_of(ledger.joules()), *ledger.counter_joules(), 1e-6);
  EXPECT_NEAR(sum_of(ledger.joules()) / truth, 1, 0.005);  // the counter's last period is not seen yet
  EXPECT_NEAR(*ledger.sampled_joules() / truth, 0.9, 0.01);
  EXPECT_NEAR(of(ledger.joules(), Phase::kForward) / (400 * 0.031 * Device::kForward), 1, 0.02);
  EXPECT_NEAR(of(ledger.joules(), Phase::kBackward) / (400 * 0.058 * Device::kBackward), 1, 0.02);
  EXPECT_NEAR(of(ledger.seconds(), Phase::kIdle), 40 * 0.04, 0.05);
}

// The first step of a run compiles, allocates and draws little: what forward and backward drew in it says
// nothing of theirs in later steps.
TEST(PhaseLedger, a_slow_first_step_does_not_colour_later_ones) {
  PhaseLedger ledger({});
  ledger.add_counter(0, 0);
  double t = 0, joules = 0;
  const auto phase = [&](Phase which, double seconds, double watts) {
    ledger.add_span({which, t, t + seconds});
    for (const double end = t + seconds; t < end - 1e-9; t += 0.005) {
      joules += 0.005 * watts;
      ledger.add_power(t + 0.002, watts);
    }
  };
  phase(Phase::kForward, 0.8, 150);
  phase(Phase::kBackward, 0.8, 250);
  double optimizer = 0;
  for (int step = 0; step < 60; ++step) {
    phase(Phase::kForward, 0.03, 700);
    phase(Phase::kBackward, 0.05, 700);
    phase(Phase::kOptimizer, 0.01, 700);
    optimizer += 0.01 * 700;
    if (step % 10 == 0) ledger.add_counter(t, joules);
    ledger.settle(t);
  }
  ledger.add_counter(t, joules);
  ledger.settle(t, /*finish=*/true);
  EXPECT_NEAR(sum_of(ledger.joules()), joules, 1e-6);
  EXPECT_NEAR(of(ledger.joules(), Phase::kOptimizer) / optimizer, 1, 0.03);
  EXPECT_NEAR(of(ledger.joules(), Phase::kForward) / (0.8 * 150 + 60 * 0.03 * 700), 1, 0.03);
}

TEST(PhaseLedger, without_a_counter_the_integral_of_the_power_stands) {
  const PhaseLedger ledger = follow(20, 1, {.has_counter = false});
  EXPECT_FALSE(ledger.counter_joules());
  EXPECT_NEAR(sum_of(ledger.joules()) / Device::joules(20), 1, 0.01);
}

TEST(PhaseLedger, without_power_windows_are_shared_by_time) {
  PhaseLedger ledger({});
  ledger.add_counter(0, 0);
  ledger.add_span({Phase::kForward, 0, 1});
  ledger.add_span({Phase::kBackward, 1, 3});
  ledger.add_counter(2, 100);
  ledger.add_counter(4, 140);
  ledger.settle(4);
  EXPECT_DOUBLE_EQ(of(ledger.joules(), Phase::kForward), 50);
  EXPECT_DOUBLE_EQ(of(ledger.joules(), Phase::kBackward), 50 + 20);
  EXPECT_DOUBLE_EQ(of(ledger.joules(), Phase::kIdle), 20);
  EXPECT_FALSE(ledger.sampled_joules());
}

TEST(PhaseLedger, waits_for_the_spans_of_a_window) {
  PhaseLedger ledger({});
  ledger.add_counter(0, 0);
  ledger.add_counter(2, 100);
  EXPECT_TRUE(ledger.settle(1.9).empty());
  ledger.add_span({Phase::kData, 0, 2});
  ASSERT_EQ(ledger.settle(2).size(), 1u);
  EXPECT_DOUBLE_EQ(of(ledger.joules(), Phase::kData), 100);
}

TEST(PhaseLedger, overlapping_spans_count_once) {
  PhaseLedger ledger({});
  ledger.add_counter(0, 0);
  ledger.add_span({Phase::kForward, 0, 6});
  ledger.add_span({Phase::kOptimizer, 4, 10});
  ledger.add_counter(10, 100);
  ledger.settle(10);
  EXPECT_DOUBLE_EQ(of(ledger.joules(), Phase::kForward), 60);
  EXPECT_DOUBLE_EQ(of(ledger.joules(), Phase::kOptimizer), 40);
}

}  // namespace
}  // namespace moebius::energy
