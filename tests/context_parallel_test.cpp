// Sequences shared by several processes on loopback: the same training as in one.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "base/file.h"
#include "tests/run_metrics.h"
#include "tests/tiny_training.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class ContextParallelTest : public TinyTraining {};

Words joined(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_F(ContextParallelTest, trains_as_one_process_does) {
  struct Layout {
    int processes;
    Words settings;
  };
  struct Form {
    Words settings;
    std::vector<Layout> layouts;
  };
  const Words heads{"model.heads=4", "model.kv_heads=2", "model.layers=2"};
  const std::vector<Form> forms{
      {{"model.qk_norm=head", "model.moe.balance.aux_loss=0.01"},
       {{2, {"parallel.cp=2"}},
        {4, {"parallel.cp=2", "parallel.dp=2"}},
        {4, {"parallel.cp=2", "parallel.tp=2"}},
        {4, {"parallel.cp=2", "parallel.ep=2"}},
        {2, {"parallel.cp=2", "parallel.ep=2", "parallel.zero_stage=3", "train.recompute=full"}}}},
      // Packed documents, several micro-batches, prediction of further tokens.
      {{"data.batching=pack", "train.micro_batch=1", "model.mtp.depth=1", "model.sliding_window=6",
        "model.moe.balance.aux_loss=0.01", "model.moe.balance.bias_rate=0.001"},
       {{4, {"parallel.cp=4"}},
        {4, {"parallel.cp=2", "parallel.fsdp=2", "parallel.zero_stage=2"}},
        {4, {"parallel.cp=2", "parallel.pp=2", "parallel.zero_stage=1"}},
        {2, {"parallel.cp=2", "parallel.overlap=false"}}}},
      {{"model.moe.balance.aux_scope=sequence", "model.moe.balance.aux_loss=0.01", "train.micro_batch=2"},
       {{2, {"parallel.cp=2"}}, {4, {"parallel.cp=2", "parallel.dp=2", "parallel.zero_stage=1"}}}}};
  for (size_t f = 0; f < forms.size(); ++f) {
    const Words settings = joined(heads, forms[f].settings);
    const std::string one = concat("one-", f);
    const Finished alone = run(one, settings, 1);
    ASSERT_EQ(alone.code, 0) << alone.errors;
    for (size_t i = 0; i < forms[f].layouts.size(); ++i) {
      SCOPED_TRACE(concat("form ", f, ", layout ", i));
      const Layout& layout = forms[f].layouts[i];
      const std::string several = concat("several-", f, "-", i);
      const Finished together = run(several, joined(settings, layout.settings), layout.processes);
      ASSERT_EQ(together.code, 0) << together.errors;
      expect_same_training(metrics_of(folder / one), metrics_of(folder / several), 20);
    }
  }
}

// Beside 2 (n - 1) / n of the gradients each rank sends keys and values round, their gradients behind them,
// and little else.
TEST_F(ContextParallelTest, a_step_sends_what_theory_says) {
  for (const int ranks : {2, 4}) {
    SCOPED_TRACE(ranks);
    const Finished finished =
        run(concat("run-", ranks),
            {concat("parallel.cp=", ranks), "model.layers=3", "model.dim=32", "train.micro_batch=2",
             "train.sample_tokens=0", "train.eval_every=0", "data.validation_fraction=0",
             "checkpoint.every=0", "checkpoint.at_end=false"},
            ranks);
    ASSERT_EQ(finished.code, 0) << finished.errors;
    const auto summary = nlohmann::json::parse(read_file(folder / concat("run-", ranks, "/summary.json")));
    // 20 steps of 4 sequences of 16 tokens, a key and a value head of 16 values, fp32 forward, backward and
    // as gradients, in 3 layers.
    const int64_t values = int64_t{20} * 4 * 16 / ranks * (ranks - 1) * 32 * 3;
    EXPECT_EQ(summary["sent"]["cp"]["all_to_all"]["bytes"].get<int64_t>(), values * 12)
        << summary["sent"].dump(1);
    const double gradients = 20 * 4.0 * summary["parameters"].get<double>() * 2 * (ranks - 1) / ranks;
    double sent = 0;
    for (const auto& [axis, collectives] : summary["sent"].items())
      for (const auto& [collective, traffic] : collectives.items())
        if (axis != "cp" || collective != "all_to_all") sent += traffic["bytes"].get<double>();
    EXPECT_GE(sent, gradients);
    EXPECT_LE(sent, gradients * 1.02);
  }
}

TEST_F(ContextParallelTest, a_run_goes_on_with_another_number_of_ranks) {
  const Words settings{"schedule.kind=constant", "model.heads=4", "model.kv_heads=2"};
  ASSERT_EQ(run("one", settings, 1).code, 0);
  const auto until = [&](int steps, const Words& more, int processes, const Words& flags) {
    const Finished finished =
        run("mixed", joined(joined(settings, more), {concat("train.steps=", steps)}), processes, flags);
    ASSERT_EQ(finished.code, 0) << finished.errors;
  };
  until(10, {"parallel.cp=2", "parallel.zero_stage=1"}, 2, {});
  until(15, {}, 1, {"--resume"});
  until(20, {"parallel.cp=4"}, 4, {"--resume"});
  expect_same_training(metrics_of(folder / "one"), metrics_of(folder / "mixed"), 20);
}

TEST_F(ContextParallelTest, refuses_what_cannot_be_shared_before_it_starts) {
  const auto refused = [&](const Words& settings) {
    const Finished finished = run("refused", joined(settings, {"parallel.cp=2"}), 2);
    EXPECT_EQ(finished.code, 2) << finished.errors;
    EXPECT_FALSE(fs::exists(folder / "refused"));
    return finished.errors;
  };
  EXPECT_NE(
      refused({"train.sequence=15"})
          .find("train.sequence is 15, which the 2 ranks of parallel.cp cannot share evenly; use 14 or 16"),
      std::string::npos);
  EXPECT_NE(refused({"data.batching=balanced"}).find("use 'window', 'pad' or 'pack', or parallel.cp = 1"),
            std::string::npos);
}

}  // namespace
}  // namespace moebius
