#include "cli/plan_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/test_folder.h"
#include "cli/command_output.h"

namespace moebius::cli {
namespace {

using testing::HasSubstr;

class PlanCommand : public testing::Test {
 protected:
  PlanCommand() : config((folder.path() / "config.toml").string()) {
    std::ofstream(config) << "[model]\nlayers = 2\ndim = 64\n[model.moe]\nexperts = 4\nexpert_dim = 32\n"
                             "[data]\nfiles = [\"text.txt\"]\n[train]\nsequence = 64\n";
  }

  // What `moebius plan ARGUMENTS` prints; the text of a UserError after "error: ".
  std::string run(const std::string& arguments) { return output_of(add_plan_command, "plan " + arguments); }

  TestFolder folder;
  std::string config;
};

TEST_F(PlanCommand, prints_a_table_and_whether_it_fits) {
  const std::string text = run(config + " --device cpu");
  EXPECT_THAT(text, HasSubstr("\n  expert                         49.2k\n"));
  EXPECT_THAT(text,
              HasSubstr("\n  tokens per step                  512  1 pass of 8 sequences of 64 tokens\n"));
  EXPECT_THAT(text, HasSubstr("memory on cpu, fp32\n"));
  EXPECT_THAT(text, HasSubstr("\nfits: this machine has "));
}

TEST_F(PlanCommand, takes_the_vocabulary_from_the_tokenizer_and_fields_from_the_command_line) {
  const auto json = nlohmann::json::parse(run(config + " --device cpu --json --set train.micro_batch=2"));
  EXPECT_EQ(json["parameters"]["embedding"], 2 * 256 * 64);
  EXPECT_EQ(json["micro_batches"], 4);
  EXPECT_EQ(json["fits"], true);
  EXPECT_EQ(json["at_peak"]["weights_bytes"], 4 * json["total_parameters"].get<int64_t>());
}

TEST_F(PlanCommand, says_what_to_change_when_it_does_not_fit) {
  const std::string text =
      run(config + " --device cpu --set train.batch=100000000 --set train.recompute=none");
  EXPECT_THAT(text, HasSubstr("\ndoes not fit: this machine has "));
  EXPECT_THAT(text, HasSubstr("  with train.micro_batch = "));
  EXPECT_THAT(text, HasSubstr("  with train.recompute = \"full\" it needs "));
}

TEST_F(PlanCommand, knows_what_a_rank_of_a_grid_holds) {
  const std::string grid = " --set parallel.tp=4 --set parallel.tp_mode=2d";
  const auto whole = nlohmann::json::parse(run(config + " --device cpu --json")),
             rank = nlohmann::json::parse(run(config + " --device cpu --json" + grid));
  const auto count = [&](const char* klass) { return whole["parameters"][klass].get<int64_t>(); };
  EXPECT_EQ(rank["parameters"], whole["parameters"]);
  EXPECT_EQ(rank["at_peak"]["weights_bytes"],
            4 * ((count("expert") + count("dense") + count("embedding")) / 4 + count("norm") / 2 +
                 count("router")));
  EXPECT_LT(2 * rank["largest"]["activations_bytes"].get<int64_t>(),
            whole["largest"]["activations_bytes"].get<int64_t>());
  EXPECT_THAT(run(config + " --device cpu --set parallel.tp=2 --set parallel.tp_mode=2d"),
              HasSubstr("needs a square grid of ranks; use 1 or 4"));
  EXPECT_THAT(
      run(config + " --cluster h100x8" + grid),
      HasSubstr("parallel.tp_mode is '2d', but --cluster predicts tensor parallelism in one dim alone"));
}

TEST_F(PlanCommand, draws_the_schedule_of_a_step) {
  const std::string three =
      config + " --schedule --set parallel.pp=2 --set train.batch=3 --set train.micro_batch=1";
  const std::string text = run(three);
  EXPECT_THAT(text,
              HasSubstr("2 processes: pp 2; 1f1b, 3 micro-batches per rank\nlayers of the pieces: 1 1\n"));
  EXPECT_THAT(text, HasSubstr("idle: 25.0 % with pieces alike"));
  EXPECT_THAT(text, HasSubstr("\nstage 0    F0 F1 .  .  B0 B0 F2 B1 B1 .  B2 B2 .  U\n"
                              "  sends    .  >0 >1 .  .  .  .  >2 .  .  .  .  .  .\n"
                              "stage 1    .  F0 B0 B0 F1 B1 B1 F2 B2 B2 .  .  .  U\n"
                              "  sends    .  .  .  .  <0 .  .  <1 .  .  <2 .  .  .\n"));
  const std::string shared = run(three +
                                 " --set parallel.fsdp=3 --set parallel.zero_stage=1 "
                                 "--set train.batch=6 --set parallel.pp_schedule=zero_bubble");
  EXPECT_THAT(shared, HasSubstr("\nstage 0    F0 F1 .  B0 W0 B1 W1 .  U\n"));
  EXPECT_THAT(shared, HasSubstr("\n  data     G  .  .  .  .  .  S  S  .\n"));
  const std::string turns = run(config +
                                " --schedule --set parallel.ep=2 --set parallel.ep_pairs=true "
                                "--set train.batch=4 --set train.micro_batch=1");
  EXPECT_THAT(turns, HasSubstr("\nstage 0    F0~ F1~ B0~ B0~ B1~ B1~ .   U\n"
                               "  data     .   .   S   S   S   S   S   .\n"));
  const auto json = nlohmann::json::parse(run(three + " --json"));
  EXPECT_EQ(json["tasks"][0].size(), 6u);
  EXPECT_EQ(json["transfers"].size(), 6u);
  EXPECT_THAT(run(three + " --set parallel.pp=3"),
              HasSubstr("error: parallel.pp is 3, but there are only 2"));
}

TEST_F(PlanCommand, predicts_a_step_on_a_cluster) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  const std::string mixtral = std::string(root) + "/configs/cluster/mixtral-8x22b.toml";
  const std::string one =
      run(mixtral +
          " --cluster h100x128 --virtual-stages 7 --set parallel.tp=2 --set parallel.pp=8 "
          "--set parallel.ep=8 --set parallel.expert_tp=1");
  EXPECT_THAT(one, HasSubstr("predicted, not measured"));
  EXPECT_THAT(one, HasSubstr("tp 2, pp 8 x 7, ep 8, expert_tp 1"));
  EXPECT_THAT(one, HasSubstr("\n  experts "));
  const auto best = nlohmann::json::parse(run(mixtral + " --cluster h100x128 --layouts 3 --json"));
  EXPECT_EQ(best["choices"].size(), 3u);
  EXPECT_EQ(best["kind"], "predicted");
  EXPECT_THAT(run(mixtral + " --cluster h100x128 --set parallel.tp=16"), HasSubstr("48 heads"));
  EXPECT_THAT(run(mixtral + " --cluster h100x2 --layouts 3"), HasSubstr("take more GPUs"));
  EXPECT_THAT(run(mixtral + " --cluster h100x8 --set parallel.cp=2"),
              HasSubstr("parallel.cp is 2, and the prediction knows no context parallelism; add --set "
                        "parallel.cp=1"));
  EXPECT_THAT(run(mixtral + " --cluster a100x8"), HasSubstr("h100x128 or h200x8"));
}

TEST_F(PlanCommand, chooses_what_to_recompute_from_a_budget) {
  const auto planned = [&](const std::string& more) {
    return nlohmann::json::parse(run(config + " --device cuda --json --set memory.budget_gib=" + more));
  };
  const auto all = planned("1");
  EXPECT_EQ(all["recompute"], "none");
  EXPECT_EQ(all["recompute_flops_per_token"], 0.0);
  ASSERT_EQ(all["recompute_options"].size(), 3u);
  const double full_gib = all["recompute_options"][2]["needed_bytes"].get<double>() / (int64_t{1} << 30);
  const auto tight = planned(std::to_string(1.0001 * full_gib));
  EXPECT_EQ(tight["recompute"], "full");
  EXPECT_EQ(tight["fits"], true);
  EXPECT_GT(tight["recompute_flops_per_token"], 0.0);
  const std::string text = run(config + " --device cuda --set memory.budget_gib=0.0001");
  EXPECT_THAT(text, HasSubstr("does not fit: memory.budget_gib is "));
  EXPECT_THAT(text, HasSubstr("% FLOPs  <- this run"));
}

TEST_F(PlanCommand, plans_for_cuda_without_a_gpu) {
  EXPECT_THAT(run(config + " --device cuda --set train.precision=bf16"), HasSubstr("memory on cuda, bf16\n"));
}

TEST_F(PlanCommand, refuses_what_train_refuses) {
  EXPECT_THAT(run(config + " --set model.heds=2"), HasSubstr("error: "));
  EXPECT_THAT(run(config + " --set model.heds=2"), HasSubstr("model.heads"));
  EXPECT_THAT(run(config + " --set model.kv_heads=3"), HasSubstr("error: "));
  EXPECT_THAT(run(config + " --set data.tokenizer=missing.model"), HasSubstr("missing.model"));
  EXPECT_THAT(run((folder.path() / "none.toml").string()), HasSubstr("none.toml"));
  EXPECT_THAT(run(""), HasSubstr("usage: "));
}

}  // namespace
}  // namespace moebius::cli
