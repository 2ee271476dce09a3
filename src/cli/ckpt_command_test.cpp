#include "cli/ckpt_command.h"

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/test_folder.h"
#include "ckpt/checkpoint.h"
#include "ckpt/folder.h"
#include "cli/command_output.h"

namespace moebius::cli {
namespace {

std::vector<ckpt::TensorGroup> some_groups() {
  return {{"model", {{"a", at::arange(6, at::kFloat).view({2, 3})}, {"b", at::arange(5, at::kFloat)}}},
          {"optimizer", {{"m.a", at::arange(6, at::kFloat).view({2, 3})}}}};
}

std::string run_ckpt(const std::string& arguments) {
  return output_of(add_ckpt_command, "ckpt " + arguments);
}

TEST(CkptCommand, inspect_shows_what_a_checkpoint_holds) {
  const TestFolder run;
  ckpt::save_checkpoint(run.path(), {7, "", R"({"tokens": 12})"}, some_groups(), {});
  const std::string text = run_ckpt("inspect --verify --tensors " + run.path().string());
  for (const char* line : {"step        7\n", " in 2 shards\n", "checksums   verified\n",
                           "state       {\"tokens\":12}\n", "model: 2 tensors, ",
                           "  optimizer-00001-of-00001.safetensors  ", "    a  F32 [2, 3]  model-00001-of"})
    EXPECT_NE(text.find(line), std::string::npos) << line << " in\n" << text;
  const auto json = nlohmann::json::parse(run_ckpt("inspect --json --tensors " + run.path().string()));
  EXPECT_EQ(json["step"], 7);
  EXPECT_EQ(json["groups"]["optimizer"]["num_tensors"], 1);
  EXPECT_EQ(json["groups"]["model"]["tensors"]["b"]["shape"], nlohmann::json({5}));
  EXPECT_NE(run_ckpt("inspect " + (run / "nowhere").string()).find("does not exist"), std::string::npos);
}

TEST(CkptCommand, merge_gives_the_files_that_one_process_writes) {
  const TestFolder one, several;
  const auto groups = some_groups();
  ckpt::save_checkpoint(one.path(), {7, "config", "{}"}, groups, {});
  ckpt::save_checkpoint(several.path(), {3, "config", "{}"}, groups, {});
  ckpt::save_checkpoint(several.path(), {7, "config", "{}"}, groups, {.shard_bytes = 8});
  EXPECT_NE(run_ckpt("merge " + several.path().string()).find("3 shards are 2 now"), std::string::npos);
  EXPECT_EQ(ckpt::list_steps(several.path()), (std::vector<int64_t>{7, 3}));
  int num_files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(ckpt::step_dir(one.path(), 7))) {
    ++num_files;
    EXPECT_TRUE(read_file(entry.path()) ==
                read_file(ckpt::step_dir(several.path(), 7) / entry.path().filename()))
        << entry.path();
  }
  EXPECT_EQ(num_files, 3);
  const TestFolder elsewhere;
  std::filesystem::rename(ckpt::step_dir(several.path(), 7), elsewhere / "step-000007");
  EXPECT_NE(run_ckpt("merge " + (elsewhere / "step-000007").string()).find("does not lie in a run"),
            std::string::npos);
}

}  // namespace
}  // namespace moebius::cli
