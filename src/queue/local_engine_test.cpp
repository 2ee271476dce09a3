#include "queue/local_engine.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::queue {
namespace {

using Kind = RunStatus::Kind;

Launch shell(int64_t job, const TestFolder& folder, const std::string& script) {
  return {.job = job,
          .attempt = 1,
          .name = "t",
          .command = {"sh", "-c", script},
          .folder = folder.path().string()};
}

// Waits, for at most 20 s, until it does; says whether it did.
template <class Condition>
bool comes(const Condition& condition) {
  for (int i = 0; i < 4000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

std::string text_of(const std::filesystem::path& file) {
  return std::filesystem::exists(file) ? read_file(file) : std::string();
}

RunStatus end_of(LocalEngine& engine, int64_t job, int64_t attempt) {
  RunStatus status;
  EXPECT_TRUE(comes([&] {
    status = *engine.status(job, attempt);
    return status.kind != Kind::running;
  }));
  return status;
}

TEST(LocalEngine, runs_a_command_and_tells_its_code) {
  const TestFolder folder;
  LocalEngine engine(folder.path());
  Launch launch =
      shell(1, folder, "echo out; echo err >&2; echo $MOEBIUS_QUEUE_WORKERS $0 {workers}; exit 3");
  launch.workers = 4;
  ASSERT_TRUE(engine.start(launch));
  const RunStatus status = end_of(engine, 1, 1);
  EXPECT_EQ(status.kind, Kind::exited);
  EXPECT_EQ(status.code, 3);
  EXPECT_EQ(read_file(folder / "jobs/1/log"), "out\nerr\n4 sh 4\n");
  // Its supervisor may hold the lock for a moment more.
  EXPECT_TRUE(comes([&] { return engine.status(1, 2)->kind == Kind::none; }));
  EXPECT_EQ(engine.status(2, 1)->kind, Kind::none);
}

TEST(LocalEngine, an_attempt_runs_once_however_often_it_is_started) {
  const TestFolder folder;
  LocalEngine engine(folder.path());
  const Launch launch = shell(1, folder, "echo once");
  ASSERT_TRUE(engine.start(launch));
  ASSERT_TRUE(comes([&] { return engine.status(1, 1)->kind == Kind::exited; }));
  ASSERT_TRUE(comes([&] { return engine.start(launch).ok(); }));
  EXPECT_EQ(engine.status(1, 1)->kind, Kind::exited);
  EXPECT_EQ(read_file(folder / "jobs/1/log"), "once\n");
}

TEST(LocalEngine, no_second_attempt_while_the_first_lives) {
  const TestFolder folder;
  LocalEngine engine(folder.path());
  ASSERT_TRUE(engine.start(shell(1, folder, "sleep 60")));
  Launch second = shell(1, folder, "true");
  second.attempt = 2;
  const auto refused = engine.start(second);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kUnavailable);
  ASSERT_TRUE(comes([&] { return std::filesystem::exists(folder / "jobs/1/pid.1"); }));
  ASSERT_TRUE(engine.stop(1, 1, true));
  EXPECT_EQ(end_of(engine, 1, 1).code, 128 + SIGKILL);
  EXPECT_TRUE(comes([&] { return engine.start(second).ok(); }));
}

TEST(LocalEngine, asks_once_and_the_job_can_save) {
  const TestFolder folder;
  LocalEngine engine(folder.path());
  ASSERT_TRUE(engine.start(
      shell(1, folder, "trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.02; done")));
  ASSERT_TRUE(comes([&] { return text_of(folder / "jobs/1/log") == "ready\n"; }));
  ASSERT_TRUE(comes([&] {
    EXPECT_TRUE(engine.stop(1, 1, false));
    return engine.status(1, 1)->kind == Kind::exited;
  }));
  EXPECT_EQ(engine.status(1, 1)->code, 75);
  EXPECT_EQ(read_file(folder / "jobs/1/log").find("saved\nsaved"), std::string::npos);
}

TEST(LocalEngine, an_orphan_is_asked_to_save_and_counts_as_alive_until_it_has) {
  const TestFolder folder;
  LocalEngine engine(folder.path());
  ASSERT_TRUE(engine.start(shell(
      1, folder,
      "trap 'sleep 0.2; echo saved; exit 75' TERM; echo $PPID > supervisor; while :; do sleep 0.02; done")));
  pid_t supervisor = 0;
  ASSERT_TRUE(comes([&] { return static_cast<bool>(std::ifstream(folder / "supervisor") >> supervisor); }));
  ASSERT_EQ(kill(supervisor, SIGKILL), 0);
  EXPECT_EQ(end_of(engine, 1, 1).kind,
            Kind::none);  // only now: nothing of it lives, and nobody knows its code
  EXPECT_EQ(read_file(folder / "jobs/1/log"), "saved\n");
}

TEST(LocalEngine, what_cannot_start_says_why) {
  const TestFolder folder;
  LocalEngine engine(folder.path());
  Launch launch = shell(1, folder, "");
  launch.command = {"no-such-program-anywhere"};
  const auto refused = engine.start(launch);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kInvalid);
  EXPECT_NE(refused.error().message.find("there is no program 'no-such-program-anywhere'"),
            std::string::npos);
  Launch lost = shell(2, folder, "true");
  lost.folder = (folder / "not-there").string();
  ASSERT_TRUE(engine.start(lost));
  EXPECT_EQ(end_of(engine, 2, 1).code, 127);
  EXPECT_NE(read_file(folder / "jobs/2/log").find("cannot start"), std::string::npos);
}

}  // namespace
}  // namespace moebius::queue
