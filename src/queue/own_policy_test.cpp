// Our policy and the plans below it, where the answer is known.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/philox.h"
#include "base/test_folder.h"
#include "queue/replay.h"
#include "queue/switching_plan.h"

namespace moebius::queue {
namespace {

// Before each hour the forecast is what `forecast[hour]` says, then the same for ever.
class Told final : public ForecastSource {
 public:
  explicit Told(std::vector<std::vector<double>> forecasts) : forecasts_(std::move(forecasts)) {}
  const Outlook& at(double now_s, double until_s) override {
    const auto hour = static_cast<size_t>(now_s / 3600);
    std::vector<double> values = forecasts_[std::min(hour, forecasts_.size() - 1)];
    values.resize(static_cast<size_t>(until_s / 3600) + 2, values.back());
    outlook_ =
        Outlook(static_cast<int64_t>(hour) * 3600, 3600, values, std::vector<double>(values.size(), 10));
    return outlook_;
  }

 private:
  std::vector<std::vector<double>> forecasts_;
  Outlook outlook_;
};

Job job(int64_t arrival_s, int64_t length_s, int64_t budget_s) {
  return {.arrival_s = arrival_s, .length_s = length_s, .expected_length_s = length_s, .budget_s = budget_s};
}

TEST(OwnPolicy, plans_again_every_hour) {
  // At first hour 2 looks cheapest; at hour 1 the forecast has changed: hour 1 is.
  const std::vector<double> truth{300, 100, 500, 500, 500, 500, 500, 500};
  Told told({{300, 250, 200, 300, 300}, {100, 400, 400, 400, 400}});
  const std::vector<Job> jobs{job(0, 3600, 3 * 3600)};
  const auto result = replay(jobs, {truth, 3600}, *make_policy("own"), told, ScalingProfile(), {}).front();
  EXPECT_EQ(result.start_s, 3600);
  EXPECT_EQ(result.finish_s, 7200);
  EXPECT_DOUBLE_EQ(result.carbon_g, 0.1);
  EXPECT_FALSE(result.missed);
}

TEST(OwnPolicy, keeps_its_plan_when_the_forecast_knows_no_error) {
  class Silent final : public ForecastSource {
   public:
    const Outlook& at(double now_s, double) override {
      const auto hour = static_cast<int64_t>(now_s / 3600);
      outlook_ = Outlook(hour * 3600, 3600, std::vector<double>(60, 300));
      if (hour == 0)
        outlook_ = Outlook(0, 3600, {300, 250, 200, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300,
                                     300, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300});
      return outlook_;
    }

   private:
    Outlook outlook_;
  } silent;
  const std::vector<double> truth(40, 100);
  const std::vector<Job> jobs{job(0, 3600, 3 * 3600)};
  const auto result = replay(jobs, {truth, 3600}, *make_policy("own"), silent, ScalingProfile(), {}).front();
  EXPECT_EQ(result.start_s, 7200);
}

TEST(OwnPolicy, runs_at_once_when_nothing_is_known_or_nothing_changes) {
  const std::vector<double> truth(40, 200);
  Told told(std::vector<std::vector<double>>{{1}});
  const std::vector<Job> jobs{job(1800, 5400, 6 * 3600), job(7200, 3600, 0)};
  for (const JobResult& each : replay(jobs, {truth, 3600}, *make_policy("own"), told, ScalingProfile(), {})) {
    EXPECT_EQ(each.wait_s, 0);
    EXPECT_EQ(each.resizes, 0);
  }
}

// Whatever the forecast says from hour to hour, what fits at the arrival is done by the deadline.
TEST(OwnPolicy, keeps_deadlines_under_any_forecast) {
  const Philox random(7, "own policy test");
  std::vector<std::vector<double>> forecasts;
  uint64_t draw = 0;
  for (int hour = 0; hour < 120; ++hour) {
    forecasts.emplace_back();
    for (int i = 0; i < 60; ++i) forecasts.back().push_back(50 + 400 * random.uniform_double(draw++));
  }
  std::vector<double> truth(200);
  for (double& each : truth) each = 50 + 400 * random.uniform_double(draw++);
  std::vector<Job> jobs;
  for (int i = 0; i < 60; ++i) {
    const auto below = [&](uint64_t bound) { return 5 * static_cast<int64_t>(random.below(draw++, bound)); };
    const int64_t arrival_s = below(60 * 720), length_s = 600 + below(8000), budget_s = below(17000);
    jobs.push_back(job(arrival_s, length_s, budget_s));
  }
  for (const int64_t switch_s : {0, 300, 900}) {
    for (const bool elastic : {false, true}) {
      Told told(forecasts);
      const ScalingProfile scaling =
          elastic ? ScalingProfile({10, 18, 24, 28}, {50, 100, 150, 200}) : ScalingProfile();
      const auto results =
          replay(jobs, {truth, 3600}, *make_policy("own"), told, scaling, {.switch_s = switch_s});
      for (size_t i = 0; i < results.size(); ++i) {
        EXPECT_FALSE(results[i].missed)
            << "job " << i << ", switching " << switch_s << ", elastic " << elastic << ": finished at "
            << results[i].finish_s << ", deadline " << jobs[i].deadline_s();
      }
    }
  }
}

class SwitchingPlan : public testing::Test {
 protected:
  std::vector<Piece> plan(double work_s, int64_t budget_s, int workers = 0) {
    values.resize(100, 1000);
    const Job each = job(0, static_cast<int64_t>(work_s), budget_s);
    const Outlook outlook(0, 3600, values);
    const Calendar calendar(std::nullopt);
    const Situation situation{.job = each,
                              .now_s = 0,
                              .work_left_s = work_s,
                              .started = workers > 0,
                              .workers = workers,
                              .switch_s = switch_s,
                              .outlook = outlook,
                              .calendar = calendar,
                              .scaling = scaling};
    return switching_plan(situation, slots_until(situation, static_cast<double>(each.deadline_s())));
  }
  static std::vector<std::vector<double>> numbers(const std::vector<Piece>& pieces) {
    std::vector<std::vector<double>> list;
    for (const Piece& each : pieces)
      list.push_back({each.begin_s / 3600, each.end_s / 3600, static_cast<double>(each.workers)});
    return list;
  }
  // In value x hours.
  double cost(const std::vector<Piece>& pieces) const {
    const Outlook outlook(0, 3600, values);
    double sum = 0;
    for (const Piece& each : pieces) sum += outlook.integral(each.begin_s, each.end_s) / 3600;
    return sum;
  }

  std::vector<double> values;
  ScalingProfile scaling;
  double switch_s = 900;
};

TEST_F(SwitchingPlan, pauses_only_when_that_saves_more_than_it_costs) {
  // Two hours of work. Three hours hold no pause, which costs a quarter of an hour: 240 (g/kWh x h) together.
  values = {100, 140, 100, 100, 500};
  EXPECT_DOUBLE_EQ(cost(plan(7200, 3600)), 240);
  EXPECT_EQ(numbers(plan(7200, 7200)), (std::vector<std::vector<double>>{{2, 4, 1}}));
  // Three hours of work in five: around the dear hour, with a quarter more at 900 for the resume, 525 instead
  // of 1100.
  values = {100, 900, 100, 100, 900};
  const auto paused = plan(3 * 3600, 7200);
  EXPECT_EQ(paused.size(), 2u);
  EXPECT_DOUBLE_EQ(cost(paused), 525);
}

TEST_F(SwitchingPlan, goes_on_rather_than_pausing_for_little) {
  values = {110, 100, 100, 500};
  // Runs already: pausing an hour saves 10 and costs a quarter of an hour at 100.
  EXPECT_EQ(numbers(plan(7200, 3600, 1)), (std::vector<std::vector<double>>{{0, 2, 1}}));
}

TEST_F(SwitchingPlan, does_all_the_work_before_the_deadline_when_it_can) {
  values = {500, 500, 10, 500};
  // Four hours of work in four hours: no pause fits.
  EXPECT_EQ(numbers(plan(4 * 3600, 0)), (std::vector<std::vector<double>>{{0, 4, 1}}));
  // Five hours of work in four: at once, and on behind the deadline.
  const auto late = plan(5 * 3600, -3600);
  EXPECT_EQ(late.front().begin_s, 0);
  EXPECT_GE(late.back().end_s, 5 * 3600);
}

// Against all allocations of whole hours, on small random cases with one worker.
TEST_F(SwitchingPlan, is_within_two_percent_of_the_best_of_all) {
  const Philox random(11, "switching plan test");
  uint64_t draw = 0;
  double total = 0, total_best = 0;
  for (int round = 0; round < 40; ++round) {
    values.clear();
    for (int i = 0; i < 10; ++i) values.push_back(100 + 300 * random.uniform_double(draw++));
    switch_s = 600;
    const double work = 3600 * 4;
    double best = 1e18;
    for (unsigned set = 0; set < 1024; ++set) {
      // The hours of the set; resumes cost 600 s; the last hour is cut to what is needed.
      double left = work, sum = 0;
      bool before = false, started = false;
      for (int i = 0; i < 10 && left > 0; ++i) {
        const bool runs = set >> i & 1;
        if (runs) {
          const double lost = started && !before ? switch_s : 0;
          const double seconds = std::min(3600.0, left + lost);
          left -= seconds - lost;
          sum += values[i] * seconds;
          started = true;
        }
        before = runs;
      }
      if (left <= 0) best = std::min(best, sum);
    }
    total += cost(plan(work, 6 * 3600));
    total_best += best / 3600;
  }
  EXPECT_LE(total, 1.02 * total_best);
}

}  // namespace
}  // namespace moebius::queue
