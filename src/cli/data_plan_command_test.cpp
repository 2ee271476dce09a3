#include "cli/data_plan_command.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "base/test_folder.h"
#include "cli/command_output.h"
#include "cli/data_command.h"

namespace moebius::cli {
namespace {

class DataPlanCommand : public testing::Test {
 protected:
  std::string list(const std::string& text) {
    std::ofstream(folder / "lengths.txt") << text;
    return (folder / "lengths.txt").string();
  }

  // What `moebius data ARGUMENTS` prints on stdout; the text of a UserError after "error: ".
  std::string run(const std::string& arguments) { return output_of(add_data_command, "data " + arguments); }
  nlohmann::json plan(const std::string& arguments) {
    return nlohmann::json::parse(run("plan --json " + arguments));
  }

  TestFolder folder;
};

TEST_F(DataPlanCommand, plan_prints_what_scripts_read) {
  const std::string file = list("6\n7\n5\n4\n0\n5\n2\n1\n");
  const auto json = plan("--lengths " + file + " --context 10 --micro-batches 2");
  EXPECT_EQ(json["policy"], "pack");
  EXPECT_EQ(json["documents"], 7);
  EXPECT_EQ(json["documents_cut"], 0);
  EXPECT_EQ(json["tokens"], 30);
  EXPECT_EQ(json["token_efficiency"], 1.0);
  EXPECT_EQ(json["imbalance_tokens"], 1.0);
  EXPECT_GE(json["imbalance_cost"], 1.0);
  EXPECT_EQ(json["max_delay_steps"], 1);
  EXPECT_GT(json["microseconds_per_sample"], 0.0);

  const auto padded = plan("--lengths " + file + " --context 10 --rows 2 --policy pad");
  EXPECT_EQ(padded["token_efficiency"], 30.0 / 70);
  EXPECT_EQ(padded["padding_tokens"], 40);
  EXPECT_EQ(plan("--lengths " + file + " --context 4")["documents_cut"], 4);
  EXPECT_NE(run("plan --lengths " + file).find("token efficiency   1.0000\n"), std::string::npos);
}

TEST_F(DataPlanCommand, plan_writes_the_plan_itself) {
  const std::string file = list("6\n7\n5\n4\n5\n2\n1\n");
  const std::string out = (folder / "plan.jsonl").string();
  run("plan --lengths " + file + " --context 10 --micro-batches 2 --out " + out);
  EXPECT_EQ(read_file(out),
            "{\"step\":0,\"micro_batches\":[{\"pieces\":[[0,0,6],[3,0,4]],\"row_length\":0,\"padding\":0},"
            "{\"pieces\":[[1,0,7],[5,0,2],[6,0,1]],\"row_length\":0,\"padding\":0}]}\n"
            "{\"step\":1,\"micro_batches\":[{\"pieces\":[[2,0,5],[4,0,5]],\"row_length\":0,\"padding\":0},"
            "{\"pieces\":[],\"row_length\":0,\"padding\":0}]}\n");
}

TEST_F(DataPlanCommand, plan_takes_a_corpus_and_can_shuffle) {
  std::ofstream(folder / "text.txt") << "one line\nanother line\na third\n";
  const std::string prefix = (folder / "corpus").string();
  run("build " + (folder / "text.txt").string() + " --per-line --out " + prefix);
  EXPECT_EQ(plan(prefix + ".idx --context 12")["tokens"], 27);
  EXPECT_EQ(plan(prefix + " --context 12 --shuffle 3")["tokens"], 27);
}

TEST_F(DataPlanCommand, plan_counts_the_cost_of_a_model) {
  // Attention weighs more in a narrow model, so that packing is less even.
  std::string text;
  for (int i = 0; i < 4000; ++i) text += std::to_string(1 + i * i % 997) + "\n";
  const std::string file = list(text);
  const double wide = plan("--lengths " + file + " --context 1000")["imbalance_cost"];
  const double narrow = plan("--lengths " + file + " --context 1000 --hidden 64")["imbalance_cost"];
  EXPECT_GT(narrow, wide);
  std::ofstream(folder / "model.toml") << "[model]\ndim = 64\n[data]\nfiles = [\"a.txt\"]\n";
  const double model = plan("--lengths " + file + " --context 1000 --model " +
                            (folder / "model.toml").string())["imbalance_cost"];
  EXPECT_GT(model, wide);
}

TEST_F(DataPlanCommand, stats_shows_lengths_and_policies) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += std::to_string(i % 70) + "\n";
  const std::string file = list(text);
  const std::string svg = (folder / "plot.svg").string();
  const std::string table = run("stats " + file + " --context 64 --svg " + svg);
  EXPECT_NE(table.find("500 documents, 8 of them empty, "), std::string::npos) << table;
  EXPECT_NE(table.find("              32 to 63"), std::string::npos);
  for (const char* policy : {"pad ", "three-buckets ", "buckets:8 ", "buckets:32 ", "pack ", "balanced "}) {
    EXPECT_NE(table.find(std::string("\n") + policy), std::string::npos) << policy;
  }
  const std::string picture = read_file(svg);
  EXPECT_EQ(picture.substr(0, 4), "<svg");
  EXPECT_NE(picture.find("lengths.txt, context 64"), std::string::npos);
  const auto json = nlohmann::json::parse(run("stats --json " + file + " --context 64"));
  EXPECT_EQ(json["empty_documents"], 8);
  EXPECT_EQ(json["policies"].size(), 6u);
}

TEST_F(DataPlanCommand, bad_input_is_named) {
  EXPECT_EQ(run("plan"), "error: name either a corpus or a list of lengths (--lengths FILE)");
  EXPECT_EQ(run("plan --lengths " + list("0\n0\n")),
            "error: " + (folder / "lengths.txt").string() +
                ": none of its 2 documents has a token, so there is nothing to plan");
  EXPECT_EQ(
      run("plan --lengths " + list("5\nx\n")).find("error: " + (folder / "lengths.txt").string() + ":2: 'x'"),
      0u);
  const std::string file = list("5\n20\n");
  EXPECT_EQ(run("plan --no-split --context 10 --lengths " + file),
            "error: " + file +
                ": document 1 has 20 tokens, more than the context of 10, and splitting is off; raise the "
                "context or allow splitting");
  EXPECT_EQ(run("plan --policy edges:9,3 --lengths " + file),
            "error: --policy is 'edges:9,3', but its edges are out of order: 3 comes after 9; write them "
            "rising, each once");
  EXPECT_EQ(run("plan --policy window --lengths " + file).find("error: --policy is 'window', which joins"),
            0u);
  EXPECT_EQ(run("plan --context 0 --lengths " + file).find("usage: --context: Value 0 not in range"), 0u);
  EXPECT_EQ(run("plan --micro-batches 100000 --ranks 100000 --lengths " + file),
            "error: --micro-batches 100000 on --ranks 100000 are more than 1048576 in a step; lower one of "
            "them");
  EXPECT_EQ(run("plan --context 1 --lengths " + list("900000000000\n")),
            "error: " + file +
                ": a context of 1 cuts its documents into more than 268435456 pieces; raise --context, or "
                "give a part of the list");
}

}  // namespace
}  // namespace moebius::cli
