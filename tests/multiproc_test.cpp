// The program in several processes on loopback: the same training as in one, and what happens when one of
// them fails.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/concat.h"
#include "tests/child_process.h"
#include "tests/loopback.h"
#include "tests/run_metrics.h"
#include "tests/tiny_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

Arguments train_arguments(const std::string& config, const fs::path& run, const Arguments& more = {}) {
  Arguments list{"train", config, "--run", run.string(), "--device", "cpu", "--threads", "1"};
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

bool has_steps(const fs::path& run, size_t count) {
  std::ifstream file(run / "metrics.jsonl");
  size_t lines = 0;
  for (std::string line; std::getline(file, line);) ++lines;
  return lines >= count;
}

// Processes that `--nproc` has started, in the order of their ranks.
std::vector<pid_t> children_of(pid_t parent) {
  std::ifstream file(concat("/proc/", parent, "/task/", parent, "/children"));
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

// A rank of `size`, as a launcher starts it.
Arguments rank_variables(int rank, int size, int port) {
  return {concat("RANK=", rank), concat("WORLD_SIZE=", size), concat("LOCAL_RANK=", rank),
          "MASTER_ADDR=127.0.0.1", concat("MASTER_PORT=", port)};
}

class MultiprocTest : public testing::Test {
 protected:
  void compare(const fs::path& one, const fs::path& several) {
    expect_same_training(metrics_of(one), metrics_of(several), 20);
    EXPECT_TRUE(fs::exists(several / concat("checkpoints/step-", std::string(6 - 2, '0'), "20")));
  }

  TestFolder folder;
};

TEST_F(MultiprocTest, several_processes_train_as_one_does) {
  const std::string config = write_tiny_config(folder, 20);
  const std::vector<Arguments> cases{
      {},
      {"--set", "train.micro_batch=1", "--set", "model.moe.balance.bias_rate=0.001"},
      {"--set", "model.moe.balance.aux_scope=model", "--set", "model.moe.balance.z_loss=0.01"},
      {"--set", "data.batching=pack", "--set", "train.micro_batch=1"},
      {"--set", "model.layers=2", "--set", "model.moe.balance.aux_scope=sequence", "--set",
       "model.mtp.depth=1"}};
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    const fs::path one = folder / concat("one-", i);
    const Finished alone = run_program(train_arguments(config, one, cases[i]));
    ASSERT_EQ(alone.code, 0) << alone.errors;
    for (const int num : {2, 4}) {
      if (num == 4 && i > 1) continue;
      SCOPED_TRACE(num);
      const fs::path several = folder / concat("several-", i, "-", num);
      Arguments more = cases[i];
      more.insert(more.end(), {"--nproc", std::to_string(num)});
      const Finished together = run_program(train_arguments(config, several, more));
      ASSERT_EQ(together.code, 0) << together.errors;
      compare(one, several);
      // One process shows and writes.
      EXPECT_EQ(together.output.find("done: step 20"), together.output.rfind("done: step 20"))
          << together.output;
      EXPECT_NE(together.errors.find(concat("torchrun: rank 0 of ", num)), std::string::npos)
          << together.errors;
      EXPECT_NE(together.errors.find(concat(num, " processes: dp ", num)), std::string::npos)
          << together.errors;
    }
  }
}

// Each rank sends 2 (n - 1) / n of the gradients in every step, and little else.
TEST_F(MultiprocTest, a_step_sends_what_theory_says) {
  const std::string config = write_tiny_config(folder, 20);
  for (const int num : {2, 4}) {
    SCOPED_TRACE(num);
    const fs::path run = folder / concat("run-", num);
    const Finished finished = run_program(train_arguments(
        config, run,
        {"--nproc", std::to_string(num), "--set", "checkpoint.every=0", "--set", "checkpoint.at_end=false"}));
    ASSERT_EQ(finished.code, 0) << finished.errors;
    const auto summary = nlohmann::json::parse(read_file(run / "summary.json"));
    EXPECT_EQ(summary["processes"], num);
    double bytes = 0;
    for (const auto& [axis, collectives] : summary["sent"].items())
      for (const auto& [collective, traffic] : collectives.items()) bytes += traffic["bytes"].get<double>();
    const double theory = 20 * 4.0 * summary["parameters"].get<double>() * 2 * (num - 1) / num;
    EXPECT_GE(bytes, theory) << summary["sent"].dump(1);
    EXPECT_LE(bytes, theory * 1.02) << summary["sent"].dump(1);
  }
}

TEST_F(MultiprocTest, a_run_goes_on_with_another_number_of_processes) {
  const std::string config = write_tiny_config(folder, 20);
  const fs::path straight = folder / "straight", changing = folder / "changing";
  // A schedule that does not depend on where a run stops.
  const auto train = [&](const fs::path& run, Arguments more) {
    more.insert(more.end(), {"--set", "schedule.kind=constant"});
    return run_program(train_arguments(config, run, more));
  };
  ASSERT_EQ(train(straight, {}).code, 0);
  ASSERT_EQ(train(changing, {"--nproc", "2", "--set", "train.steps=9"}).code, 0);
  const Finished more = train(changing, {"--nproc", "4", "--resume"});
  ASSERT_EQ(more.code, 0) << more.errors;
  const auto expected = metrics_of(straight), actual = metrics_of(changing);
  ASSERT_EQ(actual.size(), 20u);
  for (size_t i = 0; i < 20; ++i)
    EXPECT_NEAR(actual[i]["loss"].get<double>(), expected[i]["loss"].get<double>(), 1e-3) << i;
}

TEST_F(MultiprocTest, an_interrupt_saves_and_ends_all) {
  const std::string config = write_tiny_config(folder, 1000000);
  const fs::path run = folder / "run";
  ChildProcess launcher(train_arguments(config, run, {"--nproc", "2"}));
  ASSERT_TRUE(comes_within(60, [&] { return has_steps(run, 5); }));
  launcher.signal(SIGINT);
  const Finished finished = launcher.wait();
  EXPECT_EQ(finished.code, 0) << finished.errors;
  EXPECT_NE(finished.output.find("interrupted after step"), std::string::npos) << finished.output;
  EXPECT_TRUE(fs::exists(run / "summary.json"));
}

// SIGKILL of the first or another rank: all end, with one message that names it, and the run goes on from its
// last checkpoint.
TEST_F(MultiprocTest, a_killed_rank_ends_the_others_and_is_named) {
  const std::string config = write_tiny_config(folder, 1000000);
  for (const size_t victim : {size_t{1}, size_t{0}}) {
    SCOPED_TRACE(victim);
    const fs::path run = folder / concat("run-", victim);
    ChildProcess launcher(train_arguments(config, run, {"--nproc", "3", "--set", "train.batch=6"}));
    ASSERT_TRUE(comes_within(60, [&] { return has_steps(run, 10); }));
    const std::vector<pid_t> ranks = children_of(launcher.pid());
    ASSERT_EQ(ranks.size(), 3u);
    const double begin = steady_seconds();
    ASSERT_EQ(::kill(ranks[victim], SIGKILL), 0);
    const Finished finished = launcher.wait();
    EXPECT_LT(steady_seconds() - begin, 10);
    EXPECT_EQ(finished.code, 128 + SIGKILL) << finished.errors;
    EXPECT_NE(finished.errors.find(concat("error: rank ", victim, " of 3 (process ", ranks[victim],
                                          ") was killed by signal 9 (Killed), and all ranks have ended")),
              std::string::npos)
        << finished.errors;
    EXPECT_EQ(finished.errors.find("error: "), finished.errors.rfind("error: ")) << finished.errors;
    for (const pid_t each : ranks) EXPECT_NE(::kill(each, 0), 0) << each;
    const size_t done = metrics_of(run).size();
    const Finished resumed = run_program(train_arguments(
        config, run,
        {"--nproc", "2", "--resume", "--set", "train.batch=6", "--set", concat("train.steps=", done + 5)}));
    EXPECT_EQ(resumed.code, 0) << resumed.errors;
    EXPECT_EQ(metrics_of(run).size(), done + 5);
  }
}

// Wherever it happens to be: starting, meeting the others, in a step, in an exchange, saving.
TEST_F(MultiprocTest, a_rank_killed_at_any_moment_ends_the_others) {
  const std::string config = write_tiny_config(folder, 1000000);
  const fs::path run = folder / "run";
  for (const int milliseconds : {0, 50, 150, 300, 500, 800, 1200, 2000}) {
    SCOPED_TRACE(milliseconds);
    ChildProcess launcher(
        train_arguments(config, run, {"--nproc", "2", "--continue", "--set", "checkpoint.every=1"}));
    ASSERT_TRUE(comes_within(30, [&] { return children_of(launcher.pid()).size() == 2; }));
    const std::vector<pid_t> ranks = children_of(launcher.pid());
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    const double begin = steady_seconds();
    ASSERT_EQ(::kill(ranks[static_cast<size_t>(milliseconds / 50 % 2)], SIGKILL), 0);
    const Finished finished = launcher.wait();
    EXPECT_LT(steady_seconds() - begin, 10);
    EXPECT_EQ(finished.code, 128 + SIGKILL) << finished.errors;
    for (const pid_t each : ranks) EXPECT_NE(::kill(each, 0), 0) << each;
  }
  // What was saved can be gone on from.
  ChildProcess resumed(train_arguments(config, run, {"--nproc", "2", "--continue"}));
  const size_t done = metrics_of(run).size();
  EXPECT_TRUE(comes_within(60, [&] { return has_steps(run, done + 3); }));
  resumed.signal(SIGTERM);
  EXPECT_EQ(resumed.wait().code, 75);
}

// Without a launcher of ours: the processes find out by themselves.
TEST_F(MultiprocTest, ranks_of_another_launcher_end_when_one_is_killed) {
  const std::string config = write_tiny_config(folder, 1000000);
  for (const int victim : {1, 0}) {
    SCOPED_TRACE(victim);
    const fs::path run = folder / concat("run-", victim);
    const int port = free_port();
    std::vector<std::unique_ptr<ChildProcess>> ranks;
    for (int rank = 0; rank < 2; ++rank)
      ranks.push_back(std::make_unique<ChildProcess>(
          train_arguments(config, run, {"--set", "checkpoint.every=0"}), 120, rank_variables(rank, 2, port)));
    ASSERT_TRUE(comes_within(60, [&] { return has_steps(run, 10); }));
    const double begin = steady_seconds();
    ranks[static_cast<size_t>(victim)]->signal(SIGKILL);
    const Finished other = ranks[static_cast<size_t>(1 - victim)]->wait();
    EXPECT_LT(steady_seconds() - begin, 10);
    EXPECT_EQ(other.code, 1);
    EXPECT_NE(other.errors.find(
                  concat("error: rank ", victim, " of 2 has ended before the run was done; all ranks end")),
              std::string::npos)
        << other.errors;
    EXPECT_EQ(other.errors.find("error: "), other.errors.rfind("error: ")) << other.errors;
  }
}

TEST_F(MultiprocTest, a_rank_that_hangs_is_reported_with_the_collective_that_waits_for_it) {
  const std::string config = write_tiny_config(folder, 1000000);
  const fs::path run = folder / "run";
  const int port = free_port();
  const Arguments arguments = train_arguments(config, run, {"--set", "parallel.timeout_s=3"});
  ChildProcess first(arguments, 120, rank_variables(0, 2, port)),
      second(arguments, 120, rank_variables(1, 2, port));
  ASSERT_TRUE(comes_within(60, [&] { return has_steps(run, 10); }));
  std::this_thread::sleep_for(std::chrono::seconds(2));  // positions are posted twice a second
  second.signal(SIGSTOP);
  const Finished waiting = first.wait();
  EXPECT_EQ(waiting.code, 1);
  EXPECT_NE(waiting.errors.find("rank 0 of 2 (world rank 0), all_reduce number "), std::string::npos)
      << waiting.errors;
  EXPECT_NE(waiting.errors.find("did not end within 3 s (parallel.timeout_s)"), std::string::npos)
      << waiting.errors;
  EXPECT_NE(waiting.errors.find("rank 1 is behind: its last exchange was all_reduce number "),
            std::string::npos)
      << waiting.errors;
  second.signal(SIGKILL);
}

TEST_F(MultiprocTest, ranks_that_do_not_mean_the_same_run_are_refused) {
  const std::string config = write_tiny_config(folder, 10);
  const auto both = [&](const Arguments& second_more, const Arguments& second_variables, int port) {
    const Arguments patience{"--set", "parallel.timeout_s=8"};
    Arguments more = patience;
    more.insert(more.end(), second_more.begin(), second_more.end());
    ChildProcess first(train_arguments(config, folder / "run", patience), 120, rank_variables(0, 2, port));
    ChildProcess second(train_arguments(config, folder / "run", more), 120, second_variables);
    Finished results[] = {first.wait(), second.wait()};
    EXPECT_EQ(results[1].code, 2);
    EXPECT_NE(results[0].code, 0);
    EXPECT_FALSE(fs::exists(folder / "run"));
    return concat(results[0].errors, "\n", results[1].errors);
  };
  const int port = free_port();
  const std::string fields =
      both({"--set", "train.steps=12", "--set", "optimizer.lr=0.5"}, rank_variables(1, 2, port), port);
  EXPECT_NE(fields.find("rank 1 has another config than rank 0 (rank 0 -> rank 1):\n  train.steps: 10 -> 12\n"
                        "  optimizer.lr: 0.001 -> 0.5"),
            std::string::npos)
      << fields;
  const int other_port = free_port();
  const std::string sizes = both({"--set", "train.batch=6"}, rank_variables(1, 3, other_port), other_port);
  EXPECT_NE(sizes.find("rank 1 was told of 3 ranks, rank 0 of 2"), std::string::npos) << sizes;
}

TEST_F(MultiprocTest, what_cannot_start_is_refused_once_and_before_it_does) {
  const std::string config = write_tiny_config(folder, 10);
  const auto refused = [&](const Arguments& more, const Arguments& variables = {}) {
    const Finished finished =
        ChildProcess(train_arguments(config, folder / "run", more), 60, variables).wait();
    EXPECT_EQ(finished.code, 2) << finished.errors;
    EXPECT_EQ(finished.errors.find("error: "), finished.errors.rfind("error: ")) << finished.errors;
    EXPECT_FALSE(fs::exists(folder / "run"));
    return finished.errors;
  };
  EXPECT_NE(
      refused({"--nproc", "3"}).find("train.batch is 4, which 3 data ranks (dp x fsdp) cannot share evenly"),
      std::string::npos);
  EXPECT_NE(refused({"--set", "parallel.cp=2"})
                .find("one process cannot be laid out with parallel.tp = 1, parallel.cp = 2"),
            std::string::npos);
  EXPECT_NE(refused({"--nproc", "2", "--set", "parallel.backend=nccl"})
                .find("parallel.backend is 'nccl', but the run is"),
            std::string::npos);
  EXPECT_NE(refused({"--nproc", "2", "--set", "quant.scheme=int8"}).find("train with one process"),
            std::string::npos);
  EXPECT_NE(refused({}, {"RANK=1", "WORLD_SIZE=2"})
                .find("there is no address where the ranks meet; set MASTER_ADDR"),
            std::string::npos);
  EXPECT_NE(
      refused({"--nproc", "2"}, rank_variables(0, 2, 29500)).find("this is already one process of several"),
      std::string::npos);
  // Only the ranks themselves find this out.
  EXPECT_NE(refused({"--nproc", "2", "--set", "data.files=" + (folder / "missing.txt").string()})
                .find("missing.txt"),
            std::string::npos);
}

std::string path_of(const char* program) {
  std::istringstream folders(std::getenv("PATH") == nullptr ? "" : std::getenv("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');)
    if (::access(concat(folder, "/", program).c_str(), X_OK) == 0) return concat(folder, "/", program);
  return {};
}

// A launcher's command in front of the program's.
class LauncherTest : public MultiprocTest {
 protected:
  void expect_same_run(const std::string& launcher, const std::string& name) {
    const std::string config = write_tiny_config(folder, 20);
    const fs::path one = folder / "one", several = folder / "several";
    const Finished alone = run_program(train_arguments(config, one));
    ASSERT_EQ(alone.code, 0) << alone.errors;
    std::string command = concat("timeout 100 ", launcher, " ", program_under_test());
    for (const std::string& argument : train_arguments(config, several))
      command += concat(" '", argument, "'");
    const fs::path log = folder / "log";
    const int status = std::system(concat(command, " >", log.string(), " 2>&1").c_str());
    ASSERT_EQ(status, 0) << command << "\n" << read_file(log);
    EXPECT_NE(read_file(log).find(concat(name, ": rank 0 of 2, local rank 0 of 2")), std::string::npos)
        << read_file(log);
    compare(one, several);
  }
};

std::string tool(const std::string& name) {
  const char* const source = std::getenv("MOEBIUS_SOURCE_DIR");
  return concat(source == nullptr ? "." : source, "/tools/", name);
}

// Three machines (network namespaces) with links so slow that a step takes seconds; in the middle of the
// second step one of them is cut off.
TEST_F(LauncherTest, a_cut_link_ends_all_ranks_and_the_one_behind_it_is_named) {
  const fs::path log = folder / "log", run = folder / "run";
  if (std::system(concat(tool("slow_network"), " --check >", log.string(), " 2>&1").c_str()) != 0)
    GTEST_SKIP() << read_file(log);
  const std::string config = write_tiny_config(folder, 1000000);
  std::string command =
      concat("timeout 100 ", tool("slow_network"), " --ranks 3 --rate 300kbit --cut 2:0.3 --after ",
             (run / "metrics.jsonl").string(), " -- ", program_under_test());
  for (const std::string& argument :
       train_arguments(config, run, {"--set", "train.batch=3", "--set", "checkpoint.every=0"}))
    command += concat(" '", argument, "'");
  EXPECT_NE(std::system(concat(command, " >", log.string(), " 2>&1").c_str()), 0);
  const std::string text = read_file(log);
  const std::string said =
      "error: rank 2 of 3 is out of reach: its machine, or the network to it, is down; all ranks end";
  EXPECT_NE(text.find(said), std::string::npos) << text;
  EXPECT_EQ(text.find("error: "), text.rfind("error: ")) << text;
  const std::string mark = "slow_network: the last rank ended ";
  ASSERT_NE(text.find(mark), std::string::npos) << text;
  // 10 s until TCP gives the connection up, and what is left for the processes to end.
  EXPECT_LT(std::stod(text.substr(text.find(mark) + mark.size())), 20) << text;
}

// The matrix of the tool for several GPUs, as far as it runs without: one of its layouts.
TEST_F(LauncherTest, the_matrix_of_layouts_runs_over_gloo) {
  const fs::path log = folder / "log", out = folder / "out";
  const std::string command =
      concat(tool("multi_gpu.sh"), " 2 --gloo --only 'ep 2, zero 3' --program ", program_under_test(),
             " --out ", out.string(), " >", log.string(), " 2>&1");
  ASSERT_EQ(std::system(command.c_str()), 0) << read_file(log);
  const nlohmann::json report = nlohmann::json::parse(read_file(out / "report.json"));
  ASSERT_EQ(report["correctness"].size(), 1u) << report.dump(1);
  EXPECT_TRUE(report["correctness"][0]["alike"].get<bool>()) << report.dump(1);
  EXPECT_LT(report["correctness"][0]["loss_error"].get<double>(), 1e-5);
  EXPECT_NE(read_file(out / "report.md").find("| ep 2, zero 3 |"), std::string::npos);
}

TEST_F(LauncherTest, mpirun_of_open_mpi) {
  if (path_of("mpirun").empty()) GTEST_SKIP() << "mpirun is not installed (openmpi-bin of the distribution)";
  expect_same_run("mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2", "Open MPI");
}

TEST_F(LauncherTest, torchrun) {
  // It needs Python with the whole of PyTorch, of which this project has only the C++ half.
  const char* named = std::getenv("MOEBIUS_TORCHRUN");
  const std::string torchrun = named != nullptr ? named : path_of("torchrun");
  if (torchrun.empty() || std::system((torchrun + " --help >/dev/null 2>&1").c_str()) != 0)
    GTEST_SKIP() << "torchrun does not run here (pip install torch; MOEBIUS_TORCHRUN names another)";
  expect_same_run(concat(torchrun, " --no-python --nproc-per-node 2 --master-port ", free_port()),
                  "torchrun");
}

}  // namespace
}  // namespace moebius
