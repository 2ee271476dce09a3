#include "queue/slurm_engine.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::queue {
namespace {

using Kind = RunStatus::Kind;

// Answers as Slurm's commands do, from a list of jobs that the test changes.
class FakeSlurm {
 public:
  struct Entry {
    std::string id, name, state;
  };
  Result<CommandOutput> operator()(const std::vector<std::string>& command) {
    calls.push_back(command);
    if (gone)
      return CommandOutput{1, "",
                           "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"};
    if (command[0] == "squeue") {
      CommandOutput output;
      for (const Entry& each : jobs) output.out += each.id + " " + each.state + " " + each.name + "\n";
      return output;
    }
    if (command[0] == "sbatch") {
      if (!refusal.empty()) return CommandOutput{1, "", refusal};
      jobs.push_back({std::to_string(100 + jobs.size()), command[2].substr(11), "PENDING"});
      return CommandOutput{0, jobs.back().id + "\n", ""};
    }
    return CommandOutput{0, "Slurmctld(primary) at x is UP\n", ""};
  }
  int count(const std::string& program) const {
    int times = 0;
    for (const auto& call : calls) times += call[0] == program;
    return times;
  }
  std::vector<Entry> jobs;
  std::vector<std::vector<std::string>> calls;
  std::string refusal;
  bool gone = false;
};

class SlurmEngineTest : public testing::Test {
 protected:
  SlurmEngine engine() {
    return {folder.path(),
            {.queue_name = "q", .per_worker = "gpus", .status_every_s = 0},
            make_slurm_commands({"--partition=gpu"},
                                [this](const std::vector<std::string>& command) { return slurm(command); })};
  }
  Launch launch(int64_t attempt = 1) {
    return {.job = 7,
            .attempt = attempt,
            .workers = 4,
            .width = 2,
            .name = "n",
            .command = {"train", "--gpus", "{workers}", "it's"},
            .folder = "/data"};
  }
  FakeSlurm slurm;
  TestFolder folder;
};

TEST_F(SlurmEngineTest, submits_with_size_name_and_script) {
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  const auto& call = slurm.calls.back();
  const auto has = [&](const std::string& argument) {
    return std::find(call.begin(), call.end(), argument) != call.end();
  };
  EXPECT_TRUE(has("--job-name=moebius-q-7-1"));
  EXPECT_TRUE(has("--gpus=8"));
  EXPECT_TRUE(has("--partition=gpu"));
  EXPECT_TRUE(has("--no-requeue"));
  const std::string script = read_file(folder / "jobs/7/script.1");
  EXPECT_NE(script.find("'train' '--gpus' '4' 'it'\\''s' &"), std::string::npos) << script;
  EXPECT_NE(script.find("exit.1"), std::string::npos);
  EXPECT_EQ(e.status(7, 1)->kind, Kind::pending);
  slurm.jobs[0].state = "RUNNING";
  EXPECT_EQ(e.status(7, 1)->kind, Kind::running);
}

TEST_F(SlurmEngineTest, an_attempt_is_submitted_once) {
  ASSERT_TRUE(engine().start(launch()));
  ASSERT_TRUE(engine().start(launch()));  // another process, after a kill
  EXPECT_EQ(slurm.count("sbatch"), 1);
  const auto second = engine().start(launch(2));
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find("Slurm job 100, still lives"), std::string::npos);
  slurm.jobs[0].state = "COMPLETED";
  EXPECT_TRUE(engine().start(launch(2)));
}

TEST_F(SlurmEngineTest, knows_the_exit_code_when_slurm_has_forgotten) {
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  slurm.jobs.clear();
  EXPECT_EQ(e.status(7, 1)->kind, Kind::none);
  write_file_atomic(folder / "jobs/7/exit.1", "75\n");
  EXPECT_EQ(e.status(7, 1)->kind, Kind::exited);
  EXPECT_EQ(e.status(7, 1)->code, 75);
}

TEST_F(SlurmEngineTest, asks_until_it_is_heard_and_then_ends) {
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  slurm.jobs[0].state = "RUNNING";
  ASSERT_TRUE(e.stop(7, 1, false));
  ASSERT_TRUE(e.stop(7, 1, false));  // the batch script has not heard it
  EXPECT_EQ(slurm.count("scancel"), 2);
  EXPECT_EQ(slurm.calls.back(), (std::vector<std::string>{"scancel", "--batch", "--signal=TERM", "100"}));
  write_file_atomic(folder / "jobs/7/stop.1", "");
  ASSERT_TRUE(e.stop(7, 1, false));
  EXPECT_EQ(slurm.count("scancel"), 2);
  ASSERT_TRUE(e.stop(7, 1, true));
  EXPECT_EQ(slurm.calls.back(), (std::vector<std::string>{"scancel", "100"}));
  ASSERT_TRUE(e.hold(7, 1, true));
  EXPECT_EQ(slurm.calls.back(), (std::vector<std::string>{"scontrol", "hold", "100"}));
}

TEST_F(SlurmEngineTest, out_of_reach_is_not_the_end_of_a_job) {
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  slurm.gone = true;
  EXPECT_FALSE(e.status(7, 1));
  EXPECT_NE(e.status(7, 1).error().message.find(
                "Slurm's controller is out of reach: squeue: slurm_load_jobs error"),
            std::string::npos);
  EXPECT_EQ(e.start(launch(2)).error().kind, ErrorKind::kUnavailable);
  EXPECT_FALSE(e.reach());
  const auto down = make_slurm_commands({}, [](const std::vector<std::string>&) {
    return CommandOutput{1, "Slurmctld(primary) at x is DOWN\n", ""};
  });
  EXPECT_EQ(down->reach().error().message,
            "Slurm's controller is out of reach: scontrol: Slurmctld(primary) at x is DOWN");
  slurm.gone = false;
  EXPECT_TRUE(e.reach());
  slurm.refusal = "sbatch: error: invalid partition specified: gpu\n";
  slurm.jobs.clear();
  const auto refused = e.start(launch(2));
  EXPECT_EQ(refused.error().kind, ErrorKind::kInvalid);
  EXPECT_NE(refused.error().message.find("Slurm refuses: sbatch: sbatch: error: invalid partition"),
            std::string::npos);
}

TEST(RunCommand, gives_output_code_and_ends_in_time) {
  const auto done = run_command({"sh", "-c", "echo out; echo err >&2; exit 3"});
  ASSERT_TRUE(done);
  EXPECT_EQ(done->out, "out\n");
  EXPECT_EQ(done->err, "err\n");
  EXPECT_EQ(done->code, 3);
  EXPECT_EQ(run_command({"no-such-program-anywhere"}).error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(run_command({"sleep", "20"}, 0.05).error().kind, ErrorKind::kTimeout);
}

}  // namespace
}  // namespace moebius::queue
