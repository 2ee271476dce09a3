// Hand-computed replays: six hours with 100, 400, 50, 200, 25, 300 g/kWh, jobs of 1 W per cpu.
#include "queue/replay.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/test_folder.h"

namespace moebius::queue {
namespace {

// Sees the truth.
class Perfect final : public ForecastSource {
 public:
  explicit Perfect(const Grid& grid)
      : outlook_(0, grid.step_s, std::vector<double>(grid.grams_per_kwh.begin(), grid.grams_per_kwh.end())) {}
  const Outlook& at(double, double) override { return outlook_; }

 private:
  Outlook outlook_;
};

class Replay : public testing::Test {
 protected:
  Replay() {
    // Days enough behind for every look ahead.
    values.resize(200, 1000);
  }
  std::vector<JobResult> run(const std::string& policy, const std::vector<Job>& jobs) {
    Perfect source(grid());
    return replay(jobs, grid(), *make_policy(policy), source, scaling, options);
  }
  JobResult run(const std::string& policy, const Job& job) {
    return run(policy, std::vector<Job>{job}).front();
  }
  Grid grid() const { return {values, 3600}; }
  static Job job(int64_t arrival_s, int64_t length_s, int64_t budget_s, int64_t width = 1) {
    return {.arrival_s = arrival_s,
            .length_s = length_s,
            .width = width,
            .expected_length_s = length_s,
            .budget_s = budget_s};
  }

  std::vector<double> values{100, 400, 50, 200, 25, 300};
  ScalingProfile scaling;
  ReplayOptions options;
};

TEST_F(Replay, now_counts_each_part_of_an_hour) {
  // 1800 s at 100 and 1800 s at 400 with 2 W: 2 * (50 + 200) / 1000 g.
  const JobResult result = run("now", job(1800, 3600, 7200, 2));
  EXPECT_DOUBLE_EQ(result.carbon_g, 0.5);
  EXPECT_DOUBLE_EQ(result.energy_kwh, 0.002);
  EXPECT_EQ(result.start_s, 1800);
  EXPECT_EQ(result.finish_s, 5400);
  EXPECT_EQ(result.wait_s, 0);
  EXPECT_FALSE(result.missed);
  EXPECT_EQ(result.resizes, 0);
}

TEST_F(Replay, lowest_slot_starts_in_the_cheapest_hour_of_the_budget) {
  const JobResult result = run("lowest_slot", job(1800, 7200, 4 * 3600));
  EXPECT_EQ(result.start_s, 4 * 3600);  // 25 g/kWh begins 3.5 h after the arrival
  EXPECT_DOUBLE_EQ(result.carbon_g, 0.325);
  EXPECT_EQ(result.wait_s, 3.5 * 3600);
  EXPECT_EQ(run("lowest_slot", job(1800, 7200, 3 * 3600)).start_s, 2 * 3600);
}

TEST_F(Replay, lowest_window_starts_at_full_hours_after_the_arrival) {
  // Two hours from 0.5: 450; 1.5: 350; 2.5: 237.5; 3.5: 275; 4.5: 812.5 (g/kWh x h).
  const JobResult result = run("lowest_window", job(1800, 7200, 4 * 3600));
  EXPECT_EQ(result.start_s, 2.5 * 3600);
  EXPECT_DOUBLE_EQ(result.carbon_g, 0.2375);
  // The expected length decides, the true one is paid: one hour is cheapest from 4 h (25).
  Job unknown = job(0, 7200, 4 * 3600);
  unknown.expected_length_s = 3600;
  const JobResult other = run("lowest_window", unknown);
  EXPECT_EQ(other.start_s, 4 * 3600);
  EXPECT_DOUBLE_EQ(other.carbon_g, 0.325);
}

TEST_F(Replay, carbon_time_weighs_the_wait) {
  // From 0, one hour: saving per time is 0 at 0 h, (100 - 50) / 3 h at 2 h, (100 - 25) / 5 h at 4 h.
  EXPECT_EQ(run("carbon_time", job(0, 3600, 5 * 3600)).start_s, 2 * 3600);
}

TEST_F(Replay, wait_awhile_takes_the_cheapest_hours) {
  // 2.5 h of work within 6 h: 25, 50 and half of 100.
  const JobResult result = run("wait_awhile", job(0, 9000, 6 * 3600 - 9000));
  EXPECT_DOUBLE_EQ(result.carbon_g, 0.125);
  EXPECT_EQ(result.finish_s, 5 * 3600);
  EXPECT_EQ(result.resizes, 4);
  EXPECT_FALSE(result.missed);
}

TEST_F(Replay, ecovisor_runs_below_the_threshold_and_then_when_the_budget_is_used) {
  // 24 h: 25, 50, 100, 200, 300, 400 and 18 x 1000. 30th percentile: sample 5183.7 of 17280 lies in the 8th
  // hour: 1000. So it runs at once through all six hours.
  EXPECT_EQ(run("ecovisor", job(0, 4 * 3600, 3600)).finish_s, 4 * 3600);
  // 24 h of 200 with two clean hours: threshold 200; waits for the third hour, pauses behind it, uses up its
  // budget.
  values.assign(200, 200);
  values[2] = 50;
  const JobResult result = run("ecovisor", job(0, 7200, 3 * 3600));
  EXPECT_EQ(result.start_s, 7200);
  EXPECT_EQ(result.finish_s, 5 * 3600);
  EXPECT_DOUBLE_EQ(result.carbon_g, 0.25);
  EXPECT_EQ(result.resizes, 2);
}

TEST_F(Replay, elastic_takes_the_best_marginal_work_per_carbon) {
  // Two workers do 1.6 times the work at twice the power. Work per carbon in the hours of 25: 1/25 and 0.6/25
  // = 1/41.7; 50: 1/50. 2.1 h of work: first worker at 25, second at 25 (1.6), then half an hour at 50.
  scaling = ScalingProfile({10, 16}, {100, 200});
  const JobResult result = run("elastic", job(0, 7560, 4 * 3600));
  EXPECT_DOUBLE_EQ(result.carbon_g, (2 * 25 + 0.5 * 50) / 1000);
  EXPECT_EQ(result.finish_s, 5 * 3600);
  EXPECT_EQ(result.resizes, 2);  // a pause, and a resume with another size
}

TEST_F(Replay, switching_costs_time_at_full_power) {
  options.switch_s = 600;
  // 1.5 h: 4 h to 5 h and half an hour from 2 h; the resume costs 600 s at 25, which the plan learns only at
  // its end (5 h).
  const JobResult result = run("wait_awhile", job(0, 5400, 6 * 3600 - 5400));
  EXPECT_DOUBLE_EQ(result.carbon_g, (0.5 * 50 + 25 + 300.0 * 600 / 3600) / 1000);
  EXPECT_EQ(result.finish_s, 5 * 3600 + 600);
  EXPECT_EQ(result.resizes, 2);
}

TEST_F(Replay, capacity_delays_jobs_but_never_those_before) {
  options.capacity = 2;
  const auto results = run("now", {job(0, 7200, 0), job(0, 3600, 0), job(0, 3600, 0, 2), job(0, 3600, 3600)});
  EXPECT_EQ(results[0].start_s, 0);
  EXPECT_EQ(results[1].start_s, 0);
  EXPECT_EQ(results[2].start_s, 7200);  // both cpus at once
  EXPECT_TRUE(results[2].missed);
  EXPECT_EQ(results[3].start_s, 3600);  // fits into the hole before
  EXPECT_FALSE(results[3].missed);
  const std::string error = message_of<UserError>([&] { run("now", {job(0, 3600, 0, 3)}); });
  EXPECT_EQ(error, "job 0 needs 3 cpus, but --capacity is 2; raise it to 3 or leave the job out");
}

TEST_F(Replay, two_jobs_share_the_cheap_hour_only_when_there_is_room) {
  options.capacity = 1;
  const auto results = run("wait_awhile", {job(0, 3600, 5 * 3600), job(0, 3600, 5 * 3600)});
  EXPECT_DOUBLE_EQ(results[0].carbon_g, 0.025);
  EXPECT_DOUBLE_EQ(results[1].carbon_g, 0.05);
}

TEST_F(Replay, a_job_that_outlives_the_trace_is_named) {
  options.capacity = 1;
  values.assign(30, 100);
  EXPECT_EQ(message_of<UserError>([&] {
              run("now", {job(0, 20 * 3600, 0), job(0, 20 * 3600, 0)});
            }),
            "job 0 still runs when the carbon trace ends, 30 h after the begin; raise --capacity, lower "
            "--days or start "
            "earlier");
}

TEST(Summary, percentile_is_linear_between_neighbours) {
  std::vector<JobResult> results(11);
  for (size_t i = 0; i < results.size(); ++i) {
    results[i].wait_s = static_cast<double>(10 * (10 - i));
    results[i].carbon_g = 1;
    results[i].missed = i == 3;
  }
  const Summary summary = summarize(results);
  EXPECT_EQ(summary.mean_wait_s, 50);
  EXPECT_EQ(summary.p95_wait_s, 95);
  EXPECT_EQ(summary.carbon_g, 11);
  EXPECT_EQ(summary.deadline_misses, 1);
}

}  // namespace
}  // namespace moebius::queue
