// Plans, the walk over a pipeline's graph, the governor's budget, and the replay.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "energy/clocks/governor.h"
#include "energy/clocks/min_cut.h"
#include "energy/clocks/pipeline.h"
#include "energy/clocks/replay.h"

namespace moebius::energy::clocks {
namespace {

using ::testing::HasSubstr;

// t = compute / f + memory; P = 80 W + 320 W f^3 (f of the highest clock).
PhaseCurve made_up_curve(const std::string& phase, double compute, double memory, int stage = 0) {
  PhaseCurve curve;
  curve.phase = phase;
  curve.stage = stage;
  for (double mhz = 600; mhz <= 1400; mhz += 100) {
    const double f = mhz / 1400, seconds = compute / f + memory;
    curve.settings.push_back({mhz, seconds, seconds * (80 + 320 * f * f * f)});
  }
  return curve;
}

ClockTable made_up_table() {
  ClockTable table;
  table.id = table.gpu = "made up";
  table.knob = "MHz";
  table.phases = {made_up_curve("forward", 0.3, 0.02), made_up_curve("backward", 0.6, 0.05),
                  made_up_curve("optimizer", 0.01, 0.2)};
  return table;
}

TEST(ClockPlans, are_those_of_trying_everything) {
  ClockTable table = made_up_table();
  for (const double switch_seconds : {0.0, 0.005, 0.1}) {
    const PlanSpace space = make_plans(table, switch_seconds, 0.5);
    for (const double epsilon : {0.0, 0.01, 0.03, 0.1}) {
      double best = 1e300;
      const size_t count = table.phases[0].settings.size();
      for (size_t a = 0; a < count; ++a)
        for (size_t b = 0; b < count; ++b)
          for (size_t c = 0; c < count; ++c) {
            const Plan plan = evaluate(table, {a, b, c}, switch_seconds);
            if (plan.seconds <= space.base.seconds * (1 + epsilon)) best = std::min(best, plan.joules);
          }
      const auto found = best_plan(space, epsilon, false);
      ASSERT_TRUE(found);
      EXPECT_NEAR(found->joules / best, 1, 1e-4) << switch_seconds << " " << epsilon;
    }
  }
}

TEST(ClockPlans, slack_is_used_before_time_is) {
  ClockTable table = made_up_table();
  table.phases[1].slack_seconds = 0.2;
  table.phases[1].wait_watts = 90;
  const ReplayOptions options{.epsilon = 0.03, .switch_seconds = 0.005, .run_seconds = 600};
  const ReplayResult slack = replay(table, "slack", options);
  EXPECT_GT(slack.saving(), 0.05);
  EXPECT_LE(slack.slowdown(), 1e-9);
  EXPECT_GE(replay(table, "own", options).saving(), slack.saving());
}

TEST(MinCut, keeps_lower_bounds) {
  FlowGraph graph(4);
  graph.add(0, 1, 0, 5);
  graph.add(0, 2, 0, 3);
  graph.add(1, 3, 0, 4);
  graph.add(2, 3, 1, 9);
  graph.add(2, 1, 0, 1);
  const std::vector<bool> side = graph.cut(0, 3);
  EXPECT_EQ(side, (std::vector<bool>{true, true, false, false}));  // 4 + 3
  FlowGraph impossible(2);
  impossible.add(0, 1, 2, FlowGraph::kInfinite);
  EXPECT_TRUE(impossible.cut(0, 1).empty());
}

ClockTable made_up_pipeline() {
  ClockTable table;
  table.id = table.gpu = "made up";
  table.knob = "MHz";
  table.pipelined = true;
  // Stage 1 is heavier: stage 0 waits for it.
  table.phases = {made_up_curve("forward", 0.08, 0.01, 0), made_up_curve("backward", 0.16, 0.02, 0),
                  made_up_curve("forward", 0.12, 0.01, 1), made_up_curve("backward", 0.24, 0.02, 1)};
  for (PhaseCurve& curve : table.phases) curve.wait_watts = 75;
  return table;
}

TEST(Pipeline, schedule_is_1f1b) {
  const Pipeline pipeline = make_pipeline(made_up_pipeline(), 3);
  std::string order;
  for (const size_t i : pipeline.order[0])
    order += (pipeline.instructions[i].backward ? "B" : "F") +
             std::to_string(pipeline.instructions[i].micro_batch);
  EXPECT_EQ(order, "F0F1B0F2B1B2");
  EXPECT_EQ(pipeline.sequence.size(), 12u);
}

TEST(Pipeline, the_walk_finds_what_trying_everything_finds) {
  // Two micro-batches and three clocks: 3^8 plans.
  ClockTable table = made_up_pipeline();
  for (PhaseCurve& curve : table.phases)
    curve.settings = {curve.settings[2], curve.settings[5], curve.settings[8]};
  const Pipeline pipeline = make_pipeline(table, 2);
  const PlanSpace space = pipeline_space(table, 0, 2);
  ASSERT_EQ(pipeline.instructions.size(), 8u);
  for (const double epsilon : {0.0, 0.03, 0.1, 0.3}) {
    double best = 1e300;
    for (int code = 0; code < 6561; ++code) {
      std::vector<size_t> settings;
      for (int i = 0, rest = code; i < 8; ++i, rest /= 3) settings.push_back(static_cast<size_t>(rest % 3));
      const Plan plan = evaluate_pipeline(table, pipeline, settings, 0);
      if (plan.seconds <= space.base.seconds * (1 + epsilon) + 1e-9) best = std::min(best, plan.joules);
    }
    const auto found = best_plan(space, epsilon, false);
    ASSERT_TRUE(found);
    // Durations are rounded to recorded clocks, which is not the best rounding always.
    EXPECT_LT(found->joules / best, 1.01) << epsilon;
    EXPECT_GE(found->joules / best, 1 - 1e-9) << epsilon;
  }
}

TEST(Pipeline, the_fastest_plan_of_the_walk_costs_less_than_highest_clocks_everywhere) {
  const PlanSpace space = make_plans(made_up_pipeline(), 0, 0.5, 8);
  const auto same_speed = best_plan(space, 0, false);
  ASSERT_TRUE(same_speed);
  EXPECT_LT(same_speed->joules, 0.95 * space.base.joules);  // stage 0 has bubbles to fill
}

TEST(Pipeline, without_its_instructions_is_refused) {
  ClockTable table = made_up_pipeline();
  table.phases.pop_back();
  try {
    make_pipeline(table, 2);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), HasSubstr("has no phase 'backward' for stage 1"));
  }
}

GovernorOptions own_options(double switch_seconds) {
  GovernorOptions options;
  options.switch_seconds = switch_seconds;
  return options;
}

TEST(Governor, own_never_loses_more_than_it_may_at_any_moment) {
  for (const double switch_seconds : {0.005, 0.02, 0.1}) {
    const PlanSpace space = make_plans(made_up_table(), switch_seconds, 0.5);
    Governor governor(space, own_options(switch_seconds));
    double seconds = 0;
    std::string last = governor.plan().name;
    for (int step = 1; step <= 20000; ++step) {
      const bool changed = governor.plan().name != last;
      last = governor.plan().name;
      // The world is slower than the profile for a while.
      const double world =
          step > 5000 && step < 7000 && governor.plan().seconds > space.base.seconds ? 1.02 : 1;
      const double took = governor.plan().seconds * world + (changed ? switch_seconds : 0);
      seconds += took;
      governor.after_step(took);
      // The first step of the slower world is the surprise.
      ASSERT_LE(seconds,
                step * space.base.seconds * 1.03 + 0.05 * governor.plan().seconds + 2 * switch_seconds)
          << step;
    }
    EXPECT_GT(governor.num_changes(), 2);
    EXPECT_GT(seconds / (20000 * space.base.seconds), 1.025);  // and it uses what it may
  }
}

TEST(Governor, gives_up_a_plan_that_does_not_hold_what_its_profile_says) {
  const PlanSpace space = make_plans(made_up_table(), 0.005, 0.5);
  GovernorOptions options;
  options.mode = Mode::kPerPhase;
  Governor governor(space, options);
  const std::string first = governor.plan().name;
  // Between its steps the budget sends the run back to default clocks.
  for (int i = 0; i < 300 && governor.bad_plans().empty(); ++i)
    governor.after_step((governor.plan().name == first ? 1.3 : 1) * governor.plan().seconds);
  EXPECT_EQ(governor.bad_plans(), std::vector<std::string>{first});
  EXPECT_NE(governor.plan().name, first);
}

TEST(Governor, modes_have_names) {
  EXPECT_EQ(mode_named("per-phase"), Mode::kPerPhase);
  EXPECT_THROW(mode_named("fast"), UserError);
}

TEST(Replay, own_is_at_least_as_thrifty_as_one_clock_and_one_plan) {
  for (const double switch_seconds : {0.005, 0.02, 0.1}) {
    const ReplayOptions options{.epsilon = 0.03, .switch_seconds = switch_seconds};
    const ReplayResult own = replay(made_up_table(), "own", options);
    EXPECT_GE(own.saving(), replay(made_up_table(), "fixed", options).saving());
    EXPECT_GE(own.saving(), replay(made_up_table(), "per-phase", options).saving());
    EXPECT_LE(own.slowdown(), 0.03);
    EXPECT_EQ(replay(made_up_table(), "default", options).saving(), 0);
  }
}

TEST(Replay, the_articles_clocks_are_the_nearest_ones) {
  const ReplayResult article = replay(made_up_table(), "article", {});
  EXPECT_EQ(article.what, "forward 1400, backward 1400, optimizer 800 MHz");
}

TEST(Replay, an_unknown_policy_names_the_nearest) {
  try {
    canonical_policy("per-fase");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), HasSubstr("policy 'per-fase' is unknown; did you mean per-phase?"));
  }
}

class ClockTables : public ::testing::Test {
 protected:
  std::vector<ClockTable> read(const std::string& name, const std::string& text) {
    write_file_atomic(folder_ / name, text);
    return read_clock_tables(folder_ / name);
  }
  std::string refusal(const std::string& text) {
    try {
      read("t.csv", text);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  }
  TestFolder folder_;
};

TEST_F(ClockTables, power_sweeps_are_read) {
  const auto tables =
      read("s.csv",
           "gpu,dataset,network,batch_size,optimizer,power_limit_w,time_per_epoch_s,"
           "average_power_w,energy_per_epoch_j\n"
           "A40,squad,bert,32,adamw,300,100,290,29000\nA40,squad,bert,32,adamw,200,104,190,19760\n");
  ASSERT_EQ(tables.size(), 1u);
  EXPECT_EQ(tables[0].id, "A40 squad bert 32 adamw");
  EXPECT_EQ(tables[0].phases[0].settings.back().knob, 300);
  const ReplayResult own = replay(tables[0], "own", {});
  EXPECT_NEAR(own.saving(), 0.75 * (1 - 19760.0 / 29000), 0.02);  // 3 of 4 %
}

TEST_F(ClockTables, plans_are_read_with_their_switches) {
  write_file_atomic(folder_ / "kareus_ops.csv",
                    "model,cp,tp,mbs,seq,method,plan_index,stage,position,instruction,freq_mhz\n"
                    "m,1,8,8,4096,x,7,0,0,forward,1410\nm,1,8,8,4096,x,7,0,1,backward,1200\n"
                    "m,1,8,8,4096,x,9,0,0,forward,1410\nm,1,8,8,4096,x,9,0,1,backward,1410\n");
  const auto tables = read("p.csv",
                           "model,cp,tp,mbs,seq,method,plan_index,iteration_time_s,energy_j\n"
                           "m,1,8,8,4096,x,7,5.1,900\nm,1,8,8,4096,x,9,5.0,1000\n");
  ASSERT_EQ(tables.size(), 1u);
  EXPECT_EQ(tables[0].id, "m cp1 tp8 mbs8 seq4096 x");
  EXPECT_EQ(tables[0].plans[0].switches, 0);
  EXPECT_EQ(tables[0].plans[1].switches, 2);
  EXPECT_NEAR(replay(tables[0], "per-phase", {.switch_seconds = 0.005}).saving(), 1 - 900 * 1.00196 / 1000,
              1e-4);
  EXPECT_EQ(replay(tables[0], "per-phase", {.switch_seconds = 0.1}).saving(), 0);  // too slow then
}

TEST_F(ClockTables, wrong_ones_are_refused_by_line_and_column) {
  EXPECT_THAT(refusal("a,b\n1,2\n"), HasSubstr("none of the forms of a clock table"));
  EXPECT_THAT(refusal("gpu,phase,clock_mhz,time_s,energy_j\nX,forward,1400,-1,2\n"),
              HasSubstr("line 2, time_s: '-1'"));
  EXPECT_THAT(refusal("gpu,phase,clock_mhz,time_s,energy_j\nX,forward,1400,1,2\nX,forward,1400,1,2\n"),
              HasSubstr("line 3, clock_mhz: '1400' appears twice"));
  EXPECT_THAT(refusal("model,cp,tp,mbs,seq,method,plan_index,iteration_time_s,energy_j\n"),
              HasSubstr("the operations of these plans are missing"));
}

}  // namespace
}  // namespace moebius::energy::clocks
