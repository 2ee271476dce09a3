// Layers split over several processes on loopback: the same training as in one.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/concat.h"
#include "base/file.h"
#include "tests/run_metrics.h"
#include "tests/tiny_training.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class TensorParallelTest : public TinyTraining {
 protected:
  void compare(const std::string& one, const std::string& several) const {
    expect_same_training(metrics_of(folder / one), metrics_of(folder / several), 20);
  }
};

TEST_F(TensorParallelTest, trains_as_one_process_does) {
  const Words heads{"model.heads=4", "model.kv_heads=4", "model.layers=2"};
  const std::vector<Words> forms{{"model.qk_norm=head", "model.moe.balance.aux_loss=0.01"},
                                 {"model.moe.shared_experts=1", "model.moe.dense_layers=[1]",
                                  "model.ffn_dim=24", "train.micro_batch=1"}};
  struct Layout {
    int processes;
    Words settings;
  };
  const std::vector<Layout> layouts{{2, {"parallel.tp=2"}},
                                    {2, {"parallel.tp=2", "parallel.sequence_parallel=false"}},
                                    {4, {"parallel.tp=4"}},
                                    {4, {"parallel.tp=4", "parallel.tp_mode=2d"}},
                                    {4, {"parallel.tp=2", "parallel.ep=2"}}};
  for (size_t f = 0; f < forms.size(); ++f) {
    Words settings = heads;
    settings.insert(settings.end(), forms[f].begin(), forms[f].end());
    const std::string one = concat("one-", f);
    const Finished alone = run(one, settings, 1);
    ASSERT_EQ(alone.code, 0) << alone.errors;
    for (size_t i = 0; i < layouts.size(); ++i) {
      SCOPED_TRACE(concat("form ", f, ", layout ", i));
      Words all = settings;
      all.insert(all.end(), layouts[i].settings.begin(), layouts[i].settings.end());
      const std::string several = concat("several-", f, "-", i);
      const Finished together = run(several, all, layouts[i].processes);
      ASSERT_EQ(together.code, 0) << together.errors;
      compare(one, several);
    }
  }
}

TEST_F(TensorParallelTest, a_checkpoint_of_slices_goes_on_in_one_process_and_back) {
  const Words settings{"model.heads=4", "model.kv_heads=2", "schedule.kind=constant"};
  ASSERT_EQ(run("one", settings, 1).code, 0);
  // Ten steps on two ranks, five on one, five on two; the schedule is that of twenty.
  const auto until = [&](int steps, bool split, bool resumes) {
    Words all = settings;
    all.push_back(concat("train.steps=", steps));
    if (split) all.push_back("parallel.tp=2");
    const Finished finished = run("mixed", all, split ? 2 : 1, resumes ? Words{"--resume"} : Words{});
    ASSERT_EQ(finished.code, 0) << finished.errors;
  };
  until(10, true, false);
  until(15, false, true);
  until(20, true, true);
  compare("one", "mixed");
}

TEST_F(TensorParallelTest, a_checkpoint_of_blocks_goes_on_in_one_dim_and_in_one_process) {
  const Words settings{"model.heads=4", "model.kv_heads=4", "model.moe.shared_experts=1",
                       "train.sample_every=10", "schedule.kind=constant"};
  ASSERT_EQ(run("one", settings, 1).code, 0);
  const auto until = [&](int steps, int processes, const Words& more, bool resumes) {
    Words all = settings;
    all.push_back(concat("train.steps=", steps));
    all.insert(all.end(), more.begin(), more.end());
    const Finished finished = run("mixed", all, processes, resumes ? Words{"--resume"} : Words{});
    ASSERT_EQ(finished.code, 0) << finished.errors;
  };
  const Words on_grid{"parallel.tp=4", "parallel.tp_mode=2d"};
  until(6, 1, {}, false);
  until(10, 4, on_grid, true);
  until(15, 2, {"parallel.tp=2"}, true);
  until(20, 4, on_grid, true);
  compare("one", "mixed");
}

// Also validation, samples and checkpoints, and a trace of all ranks.
TEST_F(TensorParallelTest, stages_of_a_pipeline_train_as_one_process_does) {
  const Words settings{
      "model.layers=3",      "model.tied_embeddings=true", "model.moe.balance.bias_rate=0.001",
      "train.micro_batch=1", "train.sample_every=10",      "schedule.kind=constant"};
  ASSERT_EQ(run("one", settings, 1).code, 0);
  const auto train = [&](const std::string& name, int processes, const Words& more, const Words& flags) {
    Words all = settings;
    all.insert(all.end(), more.begin(), more.end());
    const Finished finished = run(name, all, processes, flags);
    ASSERT_EQ(finished.code, 0) << finished.errors;
  };
  train("mixed", 4, {"parallel.pp=2", "parallel.ep=2", "parallel.zero_stage=1", "train.steps=10"},
        {"--trace"});
  train("mixed", 1, {"train.steps=15"}, {"--resume"});
  train("mixed", 2, {"parallel.pp=2", "parallel.pp_schedule=zero_bubble", "train.steps=20"}, {"--resume"});
  compare("one", "mixed");
  const auto trace = nlohmann::json::parse(read_file(folder / "mixed/trace.json"));
  std::map<int64_t, std::set<std::string>> names;
  for (const auto& event : trace["traceEvents"])
    names[event["pid"].get<int64_t>()].insert(event["name"].get<std::string>());
  ASSERT_EQ(names.size(), 4u);
  for (const auto& [rank, seen] : names)
    for (const char* each : {"forward", "backward", "send", "receive", "all_to_all", "reduce_scatter"})
      EXPECT_EQ(seen.count(each), 1u) << each << " of rank " << rank;
}

TEST_F(TensorParallelTest, refuses_a_model_that_a_grid_does_not_split) {
  const Finished finished = run(
      "refused",
      {"parallel.tp=4", "parallel.tp_mode=2d", "model.heads=4", "model.kv_heads=4", "model.moe.experts=5"},
      4);
  EXPECT_EQ(finished.code, 2) << finished.errors;
  EXPECT_NE(finished.errors.find("parallel.tp is 4 with parallel.tp_mode = '2d', a grid of 2 x 2, and 2 does "
                                 "not divide model.moe.experts = 5"),
            std::string::npos)
      << finished.errors;
  EXPECT_FALSE(fs::exists(folder / "refused"));
}

TEST_F(TensorParallelTest, refuses_a_model_that_does_not_split) {
  const Finished finished =
      run("refused", {"parallel.tp=2", "model.kv_heads=2", "model.moe.expert_dim=15"}, 2);
  EXPECT_EQ(finished.code, 2) << finished.errors;
  EXPECT_NE(finished.errors.find("parallel.tp is 2, which does not divide model.moe.expert_dim = 15"),
            std::string::npos)
      << finished.errors;
  EXPECT_FALSE(fs::exists(folder / "refused"));
}

}  // namespace
}  // namespace moebius
