// Experts dealt out to several processes on loopback: the same training as in one.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "tests/child_process.h"
#include "tests/run_metrics.h"
#include "tests/tiny_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class ExpertParallelTest : public testing::Test {
 protected:
  // The run's lines of metrics.
  std::vector<nlohmann::json> train(const std::string& name, const Words& settings, int processes,
                                    const Words& flags = {}) {
    const fs::path run = folder / name;
    Words words{
        "train", (folder / "tiny.toml").string(), "--run", run.string(), "--device", "cpu", "--threads", "1",
        "--set", "parallel.timeout_s=60"};
    words.insert(words.end(), flags.begin(), flags.end());
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    if (processes > 1) words.insert(words.end(), {"--nproc", std::to_string(processes)});
    const Finished finished = run_program(words);
    EXPECT_EQ(finished.code, 0) << finished.errors;
    errors = finished.errors;
    return metrics_of(run);
  }

  TestFolder folder;
  std::string config = write_tiny_config(folder, 20);
  std::string errors;  // of the last run
};

TEST_F(ExpertParallelTest, trains_as_one_process_does) {
  const std::vector<Words> forms{
      {},
      {"model.layers=3", "model.moe.dense_layers=[1]", "model.moe.shared_experts=1",
       "model.moe.balance.bias_rate=0.01", "train.micro_batch=1"},
  };
  for (size_t i = 0; i < forms.size(); ++i) {
    SCOPED_TRACE(concat("form ", i));
    const auto expected = train(concat("one-", i), forms[i], 1);
    for (const auto& [processes, ep] : std::vector<std::pair<int, int>>{{2, 2}, {4, 2}, {4, 4}}) {
      SCOPED_TRACE(concat(processes, " processes, ep ", ep));
      Words settings = forms[i];
      settings.push_back(concat("parallel.ep=", ep));
      settings.push_back(concat("parallel.ep_chunks=", i == 0 ? 1 : 3));
      expect_same_training(expected,
                           train(concat("several-", i, "-", processes, "-", ep), settings, processes), 20);
      EXPECT_NE(errors.find(concat("ep ", ep)), std::string::npos) << errors;
    }
  }
}

TEST_F(ExpertParallelTest, goes_on_with_other_numbers_of_experts_per_process) {
  const std::string schedule = "schedule.kind=constant";
  const auto expected = train("straight", {schedule}, 1);
  train("changing", {schedule, "train.steps=6", "parallel.ep=2"}, 2);
  train("changing", {schedule, "train.steps=13", "parallel.ep=4"}, 4, {"--resume"});
  const auto actual = train("changing", {schedule}, 1, {"--resume"});
  expect_same_training(expected, actual, 20);
}

TEST_F(ExpertParallelTest, waiting_for_every_exchange_changes_no_bit) {
  const Words settings{"parallel.ep=2", "model.moe.shared_experts=1"};
  const auto overlapping = train("overlapping", settings, 2);
  Words patient = settings;
  patient.push_back("parallel.overlap=false");
  const auto waiting = train("waiting", patient, 2);
  ASSERT_EQ(overlapping.size(), waiting.size());
  for (size_t i = 0; i < waiting.size(); ++i) {
    for (const char* number : {"loss", "balance_loss", "gradient_norm"})
      EXPECT_EQ(overlapping[i][number], waiting[i][number]) << "step " << i + 1;
    EXPECT_GT(waiting[i]["exposed_communication_seconds"].get<double>(), 0);
    EXPECT_LT(waiting[i]["exposed_communication_seconds"], waiting[i]["step_seconds"]);
  }
}

}  // namespace
}  // namespace moebius
