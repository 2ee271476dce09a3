// Loss curves of small runs against tests/data/golden: a refactor must not change what is learnt. Machines
// with other instruction sets sum in another order, so values are compared with a tolerance;
// MOEBIUS_GOLDEN_EXACT=1 demands every digit (before and after a refactor on one machine),
// MOEBIUS_GOLDEN_UPDATE=1 writes the files anew (say why in the commit).
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "train/test_run.h"

namespace moebius::train {
namespace {

struct Golden {
  const char* name;
  std::function<void(config::RunConfig&)> change;
  double tolerance;  // relative
};

const std::vector<Golden>& golden_runs() {
  static const std::vector<Golden> runs{
      {"moe-fp32", [](config::RunConfig&) {}, 2e-5},
      {"dense-fp32",
       [](config::RunConfig& c) {
         c.model.moe = {};
         c.model.qk_norm = "none";
         c.model.tied_embeddings = true;
         c.schedule.kind = "cosine";
         c.schedule.warmup_steps = 5;
       },
       2e-5},
      {"sigmoid-capacity-fp32",
       [](config::RunConfig& c) {
         c.model.moe.score = "sigmoid";
         c.model.moe.capacity_factor = 1.25;
         c.model.moe.weight_scale = 1.5;
         c.model.moe.balance.aux_scope = "sequence";
         c.model.qk_norm = "full";
       },
       2e-5},
      {"moe-bf16", [](config::RunConfig& c) { c.train.precision = "bf16"; }, 5e-3},
  };
  return runs;
}

std::vector<double> losses_of(const TrainOptions& options) {
  std::vector<double> losses;
  std::ifstream file(options.run_dir / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) losses.push_back(nlohmann::json::parse(line)["loss"]);
  return losses;
}

TEST(Golden, loss_curves_are_reproduced) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  const bool exact = std::getenv("MOEBIUS_GOLDEN_EXACT") != nullptr;
  for (const Golden& golden : golden_runs()) {
    SCOPED_TRACE(golden.name);
    const TestFolder folder;
    TrainOptions options = tiny_run(folder, "run", 20);
    golden.change(options.config);
    train(options);
    const std::vector<double> losses = losses_of(options);
    const std::filesystem::path file =
        std::filesystem::path(root) / "tests/data/golden" / (std::string(golden.name) + ".json");
    if (std::getenv("MOEBIUS_GOLDEN_UPDATE") != nullptr)
      write_file_atomic(file, nlohmann::json{{"losses", losses}}.dump(1) + "\n");
    const auto expected = nlohmann::json::parse(read_file(file))["losses"].get<std::vector<double>>();
    ASSERT_EQ(losses.size(), expected.size());
    for (size_t i = 0; i < losses.size(); ++i)
      EXPECT_NEAR(losses[i], expected[i], exact ? 0 : golden.tolerance * expected[i]) << "step " << i + 1;
  }
}

}  // namespace
}  // namespace moebius::train
