// The ZeRO stages in several processes on loopback, and runs that go on with another number of processes.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "tests/child_process.h"
#include "tests/run_metrics.h"
#include "tests/tiny_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

class ZeroTest : public testing::Test {
 protected:
  // Trains to the end and returns the lines of metrics.jsonl. Fails the test when the program does.
  std::vector<nlohmann::json> train(const std::string& run, int processes, int stage,
                                    const Arguments& more = {}) {
    Arguments arguments{"train",     config_,
                        "--run",     (folder_ / run).string(),
                        "--device",  "cpu",
                        "--threads", "1",
                        "--set",     concat("parallel.zero_stage=", stage)};
    if (processes > 1) arguments.insert(arguments.end(), {"--nproc", std::to_string(processes)});
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished finished = run_program(arguments);
    EXPECT_EQ(finished.code, 0) << finished.errors;
    return metrics_of(folder_ / run);
  }

  TestFolder folder_;
  const std::string config_ = write_tiny_config(folder_, 20);
};

// Several buckets of a block, several micro-batches of a rank, and a schedule that does not depend on where a
// run stops.
const Arguments kSmallBuckets{"--set", "parallel.bucket_mb=0.004", "--set", "train.micro_batch=1",
                              "--set", "model.layers=2",           "--set", "schedule.kind=constant"};

TEST_F(ZeroTest, every_stage_trains_as_one_process_does) {
  const auto one = train("one", 1, 0, kSmallBuckets);
  for (int stage = 1; stage <= 3; ++stage) {
    for (const int processes : {2, 4}) {
      SCOPED_TRACE(concat("stage ", stage, " in ", processes, " processes"));
      expect_same_training(one, train(concat("run-", stage, "-", processes), processes, stage, kSmallBuckets),
                           20);
    }
  }
}

// Two summands have one sum, whatever the collective: where each process has one micro-batch, the stages are
// equal bit for bit.
TEST_F(ZeroTest, stages_of_two_processes_are_equal_bit_for_bit) {
  Arguments more = kSmallBuckets;
  more.insert(more.end(), {"--set", "train.batch=2", "--set", "optimizer.grad_clip=0"});
  const auto plain = train("plain", 2, 0, more);
  for (int stage = 1; stage <= 3; ++stage) {
    const auto sharded = train(concat("stage-", stage), 2, stage, more);
    ASSERT_EQ(plain.size(), sharded.size());
    for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(plain[i]["loss"], sharded[i]["loss"]) << i;
  }
}

struct Part {
  int processes, stage;
};

TEST_F(ZeroTest, a_run_goes_on_with_another_number_of_processes_and_another_stage) {
  const auto straight = train("straight", 1, 0, kSmallBuckets);
  const std::vector<std::pair<Part, Part>> changes{
      {{2, 3}, {1, 0}}, {{1, 0}, {2, 2}}, {{4, 3}, {2, 1}}, {{2, 1}, {4, 3}}};
  for (size_t i = 0; i < changes.size(); ++i) {
    const auto& [from, to] = changes[i];
    SCOPED_TRACE(
        concat(from.processes, " processes, stage ", from.stage, " -> ", to.processes, ", stage ", to.stage));
    const std::string run = concat("change-", i);
    Arguments first = kSmallBuckets, second = kSmallBuckets;
    first.insert(first.end(), {"--set", "train.steps=9"});
    second.push_back("--resume");
    train(run, from.processes, from.stage, first);
    expect_same_training(straight, train(run, to.processes, to.stage, second), 20);
  }
}

}  // namespace
}  // namespace moebius
