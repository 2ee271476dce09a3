#include "queue/dispatcher.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/test_folder.h"
#include "queue/dispatcher_lock.h"
#include "queue/plan_text.h"

namespace moebius::queue {
namespace {

using Kind = RunStatus::Kind;
constexpr double kStart = 1924992000;  // 2031-01-01T00:00:00Z

// 100 g/kWh from 20:00 to 08:00, 300 otherwise, known for ever.
class DayAndNight final : public ForecastSource {
 public:
  const Outlook& at(double now_s, double until_s) override {
    const auto begin = static_cast<int64_t>(std::floor(now_s / 3600)) * 3600;
    std::vector<double> values;
    for (int64_t at = begin; static_cast<double>(at) < until_s + 3600; at += 3600) {
      const int64_t hour = at / 3600 % 24;
      values.push_back(hour >= 8 && hour < 20 ? 300 : 100);
    }
    std::vector<double> deviations(knows_its_error ? values.size() : 0, 10.0);
    outlook_ = Outlook(begin, 3600, std::move(values), std::move(deviations));
    ++made;
    return outlook_;
  }
  bool knows_its_error = false;
  int made = 0;

 private:
  Outlook outlook_;
};

// Runs what it is given for as long as it was estimated, on a clock that the test moves.
class FakeEngine final : public Engine {
 public:
  struct Run {
    Launch launch;
    RunStatus status;
    int asked = 0, killed = 0;
  };
  Result<void> start(const Launch& launch) override {
    if (refuse) return *refuse;
    for (const Run& each : runs)
      EXPECT_FALSE(each.launch.job == launch.job && each.status.kind == Kind::running) << "doubled";
    runs.push_back({launch, {pends ? Kind::pending : Kind::running}});
    return {};
  }
  Result<RunStatus> status(int64_t job, int64_t attempt) override {
    const Run* found = find(job, attempt);
    return found == nullptr ? RunStatus{Kind::none} : found->status;
  }
  Result<void> stop(int64_t job, int64_t attempt, bool now) override {
    Run* run = find(job, attempt);
    if (run == nullptr) return {};
    ++(now ? run->killed : run->asked);
    if (!obeys && !now) return {};
    if (run->status.kind == Kind::pending) {
      run->status = {Kind::none};
    } else {
      run->status = {Kind::exited, now ? 137 : 75};
    }
    return {};
  }
  Run* find(int64_t job, int64_t attempt) {
    for (Run& each : runs)
      if (each.launch.job == job && each.launch.attempt == attempt) return &each;
    return nullptr;
  }
  std::vector<Run> runs;
  bool obeys = true, pends = false;
  std::optional<Error> refuse;
};

class DispatcherTest : public testing::Test {
 protected:
  StoredJob job(double length_h, double slack_h, bool can_pause = true) {
    StoredJob job;
    job.name = "j";
    job.command = {"true"};
    job.folder = "/";
    job.length_s = length_h * 3600;
    job.deadline_s = clock.unix_seconds() + (length_h + slack_h) * 3600;
    job.can_pause = can_pause;
    job.watts = 1000;
    store.add(job, clock.unix_seconds());
    return job;
  }
  Dispatcher& dispatcher() {
    if (!dispatcher_) dispatcher_.emplace(own_store, engine, forecasts, clock, options);
    return *dispatcher_;
  }
  void restart() { dispatcher_.reset(); }
  void run_for(double hours, double step_s = 300) {
    for (double passed = 0; passed < hours * 3600; passed += step_s) {
      dispatcher().tick();
      clock.advance(step_s);
    }
    dispatcher().tick();
  }
  StoredJob now(int64_t id) { return *store.find(id); }

  TestFolder folder;
  Store store{folder / "q", Database::Access::kCreate};  // as another process would have it
  Store own_store{folder / "q", Database::Access::kWrite};
  FakeEngine engine;
  DayAndNight forecasts;
  FixedClock clock{kStart + 10 * 3600};  // 10:00, dirty until 20:00
  DispatcherOptions options{.policy = "wait_awhile", .capacity = 4, .switch_s = 60};

 private:
  std::optional<Dispatcher> dispatcher_;
};

TEST_F(DispatcherTest, waits_for_clean_hours_and_runs_once) {
  const int64_t id = job(4, 24).id;
  run_for(9);
  EXPECT_TRUE(engine.runs.empty());
  EXPECT_EQ(now(id).state, State::waiting);
  run_for(1.5);
  ASSERT_EQ(engine.runs.size(), 1u);
  EXPECT_EQ(now(id).state, State::running);
  engine.runs[0].status = {Kind::exited, 0};
  run_for(0.1);
  const StoredJob done = now(id);
  EXPECT_EQ(done.state, State::done);
  EXPECT_GE(done.first_start_s, kStart + 20 * 3600);
  EXPECT_NEAR(done.carbon_g, done.energy_kwh * 100, 1e-9);
  EXPECT_GT(done.energy_kwh, 0.4);
  EXPECT_TRUE(dispatcher().idle());
}

TEST_F(DispatcherTest, pauses_in_dirty_hours_and_goes_on) {
  clock.advance(-5 * 3600);  // 05:00: three clean hours, then a day
  const int64_t id = job(6, 20).id;
  run_for(2.9);
  EXPECT_EQ(now(id).state, State::running);
  run_for(0.5);
  EXPECT_EQ(now(id).state, State::waiting);
  EXPECT_EQ(now(id).note, "paused");
  EXPECT_NEAR(now(id).work_done_s, 3 * 3600, 400);
  run_for(12);
  EXPECT_EQ(now(id).state, State::running);
  EXPECT_EQ(engine.runs.size(), 2u);
  EXPECT_EQ(engine.runs[1].launch.attempt, 2);
  EXPECT_EQ(now(id).switches, 1);
}

TEST_F(DispatcherTest, own_plans_again_every_step_and_runs_in_the_night) {
  options = {.policy = "own", .capacity = 1, .switch_s = 300};
  forecasts.knows_its_error = true;
  const int64_t id = job(4, 30).id, other = job(2, 30).id;
  run_for(9.5);
  EXPECT_TRUE(engine.runs.empty());
  run_for(5);
  ASSERT_EQ(engine.runs.size(), 1u);
  const int64_t first = engine.runs[0].launch.job;
  EXPECT_EQ(now(first).state, State::running);
  engine.runs[0].status = {Kind::exited, 0};
  run_for(1);
  ASSERT_EQ(engine.runs.size(), 2u);
  EXPECT_EQ(engine.runs[1].launch.job, first == id ? other : id);
  EXPECT_EQ(engine.runs[0].asked, 0);
}

TEST_F(DispatcherTest, a_job_that_cannot_pause_runs_through) {
  clock.advance(-5 * 3600);
  const int64_t id = job(6, 4, false).id;
  run_for(12);
  EXPECT_EQ(now(id).state, State::running);  // longer than estimated, and not touched
  ASSERT_EQ(engine.runs.size(), 1u);
  EXPECT_EQ(engine.runs[0].asked, 0);
}

TEST_F(DispatcherTest, a_deadline_out_of_reach_runs_at_once) {
  const int64_t id = job(4, -2).id;
  run_for(0.1);
  EXPECT_EQ(now(id).state, State::running);
}

TEST_F(DispatcherTest, capacity_goes_by_priority_and_is_never_exceeded) {
  options.policy = "now";
  StoredJob low = job(1, 100), high = job(1, 100);
  StoredJob wide = job(1, 100);
  store.database().execute("UPDATE jobs SET priority = 5 WHERE id = 2");
  store.database().execute("UPDATE jobs SET width = 4");
  run_for(0.1);
  ASSERT_EQ(engine.runs.size(), 1u);
  EXPECT_EQ(engine.runs[0].launch.job, high.id);
  engine.runs[0].status = {Kind::exited, 0};
  run_for(0.2);
  ASSERT_EQ(engine.runs.size(), 2u);
  EXPECT_EQ(engine.runs[1].launch.job, low.id);
}

TEST_F(DispatcherTest, plans_the_first_thousand_and_the_others_when_their_turn_comes) {
  options = {.policy = "now", .capacity = 1};
  std::vector<StoredJob> jobs(1005, job(0.01, 48));
  store.database().execute("DELETE FROM history");
  store.database().execute("DELETE FROM jobs");
  store.add(jobs, clock.unix_seconds());
  run_for(0.01);
  EXPECT_EQ(now(jobs[999].id).plan.empty(), false);
  EXPECT_EQ(now(jobs[1003].id).plan.empty(), true);
  for (int i = 0; i < 10; ++i) {
    engine.runs.back().status = {Kind::exited, 0};
    run_for(0.01);
  }
  EXPECT_EQ(now(jobs[1003].id).plan.empty(), false);
  EXPECT_EQ(engine.runs.size(), 11u);
}

TEST_F(DispatcherTest, users_hold_release_and_cancel) {
  options.policy = "now";
  const int64_t id = job(5, 100).id;
  run_for(0.1);
  store.want(id, Wanted::hold, clock.unix_seconds());
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::waiting);
  EXPECT_TRUE(dispatcher().idle());
  run_for(1);
  EXPECT_EQ(engine.runs.size(), 1u);
  store.want(id, Wanted::run, clock.unix_seconds());
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::running);
  store.want(id, Wanted::cancel, clock.unix_seconds());
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::cancelled);
  EXPECT_EQ(engine.runs.size(), 2u);
}

TEST_F(DispatcherTest, elastic_jobs_change_size_between_attempts) {
  options.policy = "elastic";
  clock.advance(9.5 * 3600);  // 19:30
  StoredJob job;
  job.name = "elastic";
  job.command = {"true"};
  job.folder = "/";
  job.length_s = 30 * 3600;
  job.deadline_s = clock.unix_seconds() + 30 * 3600;
  job.can_pause = true;
  job.scaling_text = "1,1.5;1,2";
  store.add(job, clock.unix_seconds());
  run_for(14);
  ASSERT_EQ(engine.runs.size(), 3u);  // two in the night, one before and after
  EXPECT_EQ(engine.runs[0].launch.workers, 1);
  EXPECT_EQ(engine.runs[1].launch.workers, 2);
  EXPECT_EQ(engine.runs[2].launch.workers, 1);
  EXPECT_EQ(now(job.id).switches, 2);
}

TEST_F(DispatcherTest, an_attempt_that_dies_without_a_word_is_started_again_but_not_for_ever) {
  options.policy = "now";
  const int64_t id = job(5, 100).id;
  for (int i = 0; i < 5; ++i) {
    run_for(0.2);
    EXPECT_EQ(now(id).state, State::running) << i;
    engine.runs.back().status = {Kind::none};
  }
  run_for(0.2);
  engine.runs.back().status = {Kind::none};
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::failed);
  EXPECT_EQ(now(id).note, "ended without a word, 6 times");
  EXPECT_EQ(engine.runs.size(), 6u);
}

TEST_F(DispatcherTest, one_that_others_end_goes_on_and_one_that_fails_does_not) {
  options.policy = "now";
  const int64_t id = job(5, 100).id;
  run_for(0.2);
  engine.runs.back().status = {Kind::exited, 143};
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::running);
  EXPECT_EQ(now(id).lost_attempts, 1);
  engine.runs.back().status = {Kind::exited, 1};
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::failed);
}

TEST_F(DispatcherTest, a_new_dispatcher_adopts_what_runs) {
  const int64_t id = job(4, 24).id;
  run_for(10.2);
  ASSERT_EQ(engine.runs.size(), 1u);
  restart();
  engine.runs[0].status = {Kind::exited, 0};
  run_for(0.1);
  EXPECT_EQ(now(id).state, State::done);
  EXPECT_EQ(engine.runs.size(), 1u);
}

TEST_F(DispatcherTest, plans_made_once_survive_a_restart) {
  const int64_t id = job(4, 24).id;
  run_for(0.1);
  const std::string plan = now(id).plan;
  EXPECT_FALSE(plan.empty());
  clock.advance(3 * 3600);
  restart();
  run_for(0.1);
  EXPECT_EQ(now(id).plan, plan);
}

TEST_F(DispatcherTest, a_start_that_a_cluster_keeps_waiting_is_taken_back_when_it_is_not_wanted) {
  options.policy = "now";
  engine.pends = true;
  const int64_t id = job(5, 100).id;
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::starting);
  EXPECT_EQ(now(id).work_done_s, 0);
  store.want(id, Wanted::hold, clock.unix_seconds());
  run_for(0.2);
  EXPECT_EQ(engine.runs[0].asked, 1);
  EXPECT_EQ(now(id).state, State::waiting);
  EXPECT_EQ(now(id).note, "was not started");
  EXPECT_EQ(now(id).lost_attempts, 0);
}

TEST_F(DispatcherTest, one_that_ends_by_the_signal_before_it_was_seen_running_is_not_lost) {
  options.policy = "now";
  engine.pends = true;
  engine.obeys = false;
  const int64_t id = job(5, 100).id;
  run_for(0.2);
  store.want(id, Wanted::hold, clock.unix_seconds());
  run_for(0.2);
  ASSERT_GE(engine.runs[0].asked, 1);
  engine.runs[0].status = {Kind::exited, 143};
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::waiting);
  EXPECT_EQ(now(id).note, "paused");
  EXPECT_EQ(now(id).lost_attempts, 0);
  store.want(id, Wanted::run, clock.unix_seconds());
  run_for(0.2);
  ASSERT_EQ(engine.runs.size(), 2u);
  store.want(id, Wanted::cancel, clock.unix_seconds());
  run_for(0.1);
  engine.runs[1].status = {Kind::exited, 143};
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::cancelled);
}

TEST_F(DispatcherTest, one_to_be_cancelled_that_others_end_first_is_cancelled) {
  options.policy = "now";
  const int64_t id = job(5, 100).id;
  run_for(0.2);
  store.want(id, Wanted::cancel, clock.unix_seconds());
  engine.runs[0].status = {Kind::exited, 143};
  run_for(0.2);
  EXPECT_EQ(now(id).state, State::cancelled);
  EXPECT_EQ(engine.runs.size(), 1u);
}

TEST_F(DispatcherTest, what_does_not_stop_is_ended_after_the_grace) {
  options.policy = "now";
  engine.obeys = false;
  const int64_t id = job(5, 100).id;
  run_for(0.1);
  store.want(id, Wanted::hold, clock.unix_seconds());
  run_for(0.15, 60);
  EXPECT_EQ(now(id).state, State::stopping);
  EXPECT_EQ(engine.runs[0].killed, 0);
  run_for(0.2, 60);
  EXPECT_EQ(engine.runs[0].killed, 1);
  EXPECT_EQ(now(id).state, State::waiting);
}

TEST_F(DispatcherTest, what_cannot_start_fails_or_is_tried_again) {
  options.policy = "now";
  const int64_t id = job(5, 100).id;
  engine.refuse = make_error(ErrorKind::kUnavailable, "no room");
  run_for(0.1);
  EXPECT_EQ(now(id).state, State::waiting);
  EXPECT_EQ(now(id).note, "no room");
  engine.refuse.reset();
  run_for(0.1);
  EXPECT_EQ(now(id).state, State::running);
  engine.refuse = make_error(ErrorKind::kInvalid, "there is no program 'x'");
  const int64_t other = job(1, 100).id;
  run_for(0.1);
  EXPECT_EQ(now(other).state, State::failed);
  EXPECT_EQ(now(other).exit_code, 127);
}

TEST(DispatcherLock, one_at_a_time) {
  const TestFolder folder;
  {
    const DispatcherLock lock(folder.path());
    EXPECT_EQ(DispatcherLock::holder(folder.path()), getpid());
    EXPECT_NE(message_of<UserError>([&] {
                const DispatcherLock second(folder.path());
              }).find("is already run by process " + std::to_string(getpid())),
              std::string::npos);
  }
  EXPECT_EQ(DispatcherLock::holder(folder.path()), 0);
  const DispatcherLock again(folder.path());
}

TEST(PlanText, reads_what_it_writes_and_nothing_else) {
  const std::vector<Piece> plan = {{1.5, 2.25, 1}, {3, 4, 8}};
  const auto read = parse_plan(plan_text(plan));
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[1].workers, 8);
  EXPECT_EQ(read[0].end_s, 2.25);
  for (const char* text : {"", "x", "1,2", "2,1,1", "1,2,0", "1,2,1;"}) {
    EXPECT_LE(parse_plan(text).size(), 1u) << text;
  }
}

}  // namespace
}  // namespace moebius::queue
