// The ledger over the stand-in for NVML, which answers a recorded run reading by reading.
#include "energy/run_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/concat.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "energy/nvml_stand_in.h"

namespace moebius::energy {
namespace {

using ::testing::HasSubstr;

class RunLedgerTest : public ::testing::Test {
 protected:
  RunLedgerTest() {
    options_.pci_bus_id = "0000:3b:00.0";
    options_.sources.nvml_library = built_or_named(MOEBIUS_NVML_STAND_IN);
    options_.sources.powercap = root_.path();  // no RAPL
    options_.sources.clock = &clock_;
    options_.sources.background_seconds = 0;
    options_.background = false;
    options_.counter_seconds = 0;  // with every sample
  }

  // 20 s of steps of 0.5 s: forward 0.2 s at 600 W, backward 0.3 s at 400 W. Samples every 50 ms, counter
  // renewed every 100 ms. The sensor shows 20 W too little.
  void record() {
    std::string energy = "1000000 ", power = "580000 ";  // as it opens
    for (int i = 1; i <= 400; ++i) {
      const int ms = i * 50, seen = ms / 100 * 100;
      const int in_step = seen % 500;
      const int mj = seen / 500 * 240'000 + std::min(in_step, 200) * 600 + std::max(0, in_step - 200) * 400;
      energy += concat(1'000'000 + mj, " ");
      power += concat(ms % 500 < 200 ? 580'000 : 380'000, " ");
    }
    settings_.set("ENERGY", energy);
    settings_.set("POWER", power);
  }

  RunLedger::Totals follow(RunLedger& ledger) {
    for (int i = 1; i <= 400; ++i) {
      clock_.advance(0.05);
      ledger.sample();
      if (i % 10 != 0) continue;
      const double t = i * 0.05;
      ledger.add({Phase::kForward, t - 0.5, t - 0.3});
      ledger.add({Phase::kBackward, t - 0.3, t});
      ledger.settle();
    }
    ledger.finish();
    return ledger.totals();
  }

  StandInSettings settings_;
  TestFolder root_;
  FixedClock clock_;
  RunLedgerOptions options_;
};

TEST_F(RunLedgerTest, phases_of_a_recorded_run_sum_to_the_counter) {
  record();
  options_.grid = GridIntensity({.constant_g_per_kwh = 360}, 0);
  RunLedger ledger(options_);
  const RunLedger::Totals totals = follow(ledger);
  ASSERT_TRUE(totals.gpu);
  EXPECT_NEAR(*totals.gpu->counter_joules, 40 * 240, 1e-6);
  EXPECT_NEAR(totals.gpu->total_joules / *totals.gpu->counter_joules, 1, 0.02);
  EXPECT_NEAR(totals.gpu->joules[0], 40 * 120, 0.05 * 40 * 120);
  EXPECT_NEAR(totals.gpu->joules[1], 40 * 120, 0.05 * 40 * 120);
  EXPECT_NEAR(*totals.gpu->sampled_joules / *totals.gpu->counter_joules, 460.0 / 480, 0.02);
  EXPECT_NEAR(*totals.gpu->grams, totals.gpu->total_joules / 3.6e6 * 360, 1e-9);
  EXPECT_FALSE(totals.host);
  EXPECT_EQ(ledger.recent_joules().device_joules, totals.gpu->counter_joules);
  EXPECT_EQ(ledger.gpu_uuid(), "GPU-00000000-0000-0000-0000-000000000000");
  EXPECT_EQ(ledger.gpu_state().sm_mhz, 1980);
}

TEST(SampleInterval, keeps_samples_below_half_a_percent_of_the_time) {
  EXPECT_EQ(sample_interval(1e-5, 0.02), 0.02);
  EXPECT_EQ(sample_interval(1e-3, 0.02), 0.5);
  for (const double cost : {1e-6, 1e-4, 1e-2, 1.0}) EXPECT_LE(cost / sample_interval(cost, 0.02), 0.0025);
}

TEST_F(RunLedgerTest, a_counter_that_is_read_once_a_second_gives_the_same) {
  record();
  // 240 J a step, seen with the samples at 0.05 s, 1.05 s, … and at the end.
  std::string energy = "1000000 ";
  for (int second = 0; second < 20; ++second) energy += concat(1'000'000 + second * 480'000, " ");
  settings_.set("ENERGY", energy + "10600000");
  options_.counter_seconds = 0.99;
  RunLedger ledger(options_);
  const RunLedger::Totals totals = follow(ledger);
  ASSERT_TRUE(totals.gpu);
  EXPECT_NEAR(*totals.gpu->counter_joules, 40 * 240, 1e-6);
  EXPECT_NEAR(totals.gpu->total_joules / *totals.gpu->counter_joules, 1, 0.02);
  // Samples at the borders of phases show the phase before.
  EXPECT_NEAR(totals.gpu->joules[0] / totals.gpu->joules[1], 1, 0.1);
}

TEST_F(RunLedgerTest, without_a_counter_power_is_integrated_and_the_method_says_so) {
  record();
  settings_.set("ENERGY", "!3");
  RunLedger ledger(options_);
  const RunLedger::Totals totals = follow(ledger);
  ASSERT_TRUE(totals.gpu);
  EXPECT_FALSE(totals.gpu->counter_joules);
  EXPECT_NEAR(totals.gpu->total_joules / (40 * 240), 460.0 / 480, 0.03);
  EXPECT_THAT(totals.gpu->method,
              HasSubstr("NVML power of the GPU, sampled and integrated; no energy counter"));
}

TEST_F(RunLedgerTest, a_counter_that_is_reset_leaves_no_number) {
  record();
  settings_.set("ENERGY", "1000000 1030000 1060000 20 30000");
  RunLedger ledger(options_);
  ::testing::internal::CaptureStderr();
  EXPECT_FALSE(follow(ledger).gpu);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the counter went backwards"));
}

TEST_F(RunLedgerTest, a_lost_gpu_leaves_no_number) {
  record();
  settings_.set("ENERGY", "1000000 1030000 !15");
  settings_.set("POWER", "580000 580000 !15");
  RunLedger ledger(options_);
  ::testing::internal::CaptureStderr();
  EXPECT_FALSE(follow(ledger).gpu);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("GPU is lost"));
}

TEST_F(RunLedgerTest, no_sensor_no_number) {
  options_.pci_bus_id.reset();
  RunLedger ledger(options_);
  const RunLedger::Totals totals = follow(ledger);
  EXPECT_FALSE(totals.gpu);
  EXPECT_FALSE(totals.host);
}

TEST_F(RunLedgerTest, an_estimate_of_the_host_is_marked) {
  options_.pci_bus_id.reset();
  options_.cpu_watts_per_core = 10;
  RunLedger ledger(options_);
  const volatile double spin = [] {
    double sum = 0;
    for (int i = 0; i < 3'000'000; ++i) sum += i;
    return sum;
  }();
  (void)spin;
  const RunLedger::Totals totals = follow(ledger);
  ASSERT_TRUE(totals.host);
  EXPECT_TRUE(totals.host->estimated);
  EXPECT_GT(totals.host->total_joules, 0);
  EXPECT_NEAR(totals.host->total_joules / *totals.host->counter_joules, 1, 0.02);
  EXPECT_THAT(totals.host->method,
              HasSubstr("estimate: processor time of this process x 10 W per busy core"));
  EXPECT_FALSE(totals.host->grams);  // no grid
}

TEST_F(RunLedgerTest, grams_end_with_the_trace) {
  record();
  write_file_atomic(root_ / "XX.csv",
                    "time_as_recorded,g_per_kwh\n2020-01-01T00:00:00,100\n2020-01-01T00:05:00,100\n");
  options_.grid = GridIntensity({.trace = root_ / "XX.csv", .replay_from = "2020-01-01T00:09:50Z"}, 0);
  RunLedger ledger(options_);
  ::testing::internal::CaptureStderr();
  const RunLedger::Totals totals = follow(ledger);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the carbon trace ends"));
  EXPECT_TRUE(totals.gpu);
  EXPECT_FALSE(totals.gpu->grams);
}

}  // namespace
}  // namespace moebius::energy
