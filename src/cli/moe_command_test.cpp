#include "cli/moe_command.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/command_output.h"

namespace moebius::cli {
namespace {

class MoeCommand : public testing::Test {
 protected:
  MoeCommand() {
    std::string name = (std::filesystem::temp_directory_path() / "moebius-moe-XXXXXX").string();
    folder = ::mkdtemp(name.data());
    const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
    log = std::string(root ? root : ".") + "/tests/data/expert_load.jsonl.gz";
  }
  ~MoeCommand() override { std::filesystem::remove_all(folder); }
  std::string run(const std::string& arguments) { return output_of(add_moe_command, "moe " + arguments); }
  std::string write(const std::string& text) {
    const std::string path = (folder / "log.jsonl").string();
    std::ofstream(path) << text;
    return path;
  }

  std::filesystem::path folder;
  std::string log;
};

TEST_F(MoeCommand, forecasts_of_a_logged_run_are_judged) {
  const auto json = nlohmann::json::parse(
      run("forecast " + log + " --json --horizons 1000 --from 2500 --to 3500 --smooth 100 --top-k 4"));
  EXPECT_EQ(json["experts"], 32);
  ASSERT_EQ(json["forecasts"].size(), 5u);
  std::map<std::string, double> errors;
  for (const auto& forecast : json["forecasts"]) errors[forecast["predictor"]] = forecast["share_error"];
  // docs/expert-load.md has these numbers.
  EXPECT_NEAR(errors["last"], 0.0815, 0.0005);
  EXPECT_NEAR(errors["mean:256"], 0.0192, 0.0005);
  EXPECT_NEAR(errors["exp:128"], 0.0189, 0.0005);
  EXPECT_NEAR(errors["ar:8:1024"], 0.0196, 0.0005);
  EXPECT_NEAR(errors["linear"], 0.0192, 0.0005);
  EXPECT_NEAR(json["sampling_error"], 0.0012, 0.0001);
  const std::string table = run("forecast " + log + " --horizons 10 --predictors last,mean:16");
  EXPECT_NE(table.find("\nmean:16 "), std::string::npos) << table;
}

TEST_F(MoeCommand, placements_follow_a_shift_of_the_load) {
  const auto json = nlohmann::json::parse(run("place " + log + " --json --ranks 8 --slots 5 --every 250"));
  EXPECT_LT(json["imbalance_planned"], json["imbalance_contiguous"]);
  EXPECT_LE(json["imbalance_hindsight"], json["imbalance_planned"]);
  EXPECT_LT(json["moves_per_plan"], 8);
}

TEST_F(MoeCommand, user_errors_name_file_line_and_way_out) {
  const std::string first = R"({"step": 1, "layers": [{"layer": 0, "load": [1, 1]}]})"
                            "\n";
  const auto error = [&](const std::string& text) {
    const std::string message = run("forecast --horizons 1 " + write(text));
    const size_t at = message.find("log.jsonl");
    return at == std::string::npos ? message : message.substr(at);
  };
  EXPECT_EQ(error(first + "{"), "log.jsonl:2: the line is not valid JSON; give a whole metrics.jsonl");
  EXPECT_EQ(error(first + first),
            "log.jsonl:2: the line goes back to an earlier step; give a whole metrics.jsonl");
  EXPECT_EQ(error(first + R"({"step": 2, "layers": [{"layer": 1, "load": [1, 1]}]})"),
            "log.jsonl:2: the line has other layers than the lines before; give a whole metrics.jsonl");
  EXPECT_EQ(
      error(first + R"({"step": 2, "layers": [{"layer": 0, "load": [1]}]})"),
      "log.jsonl:2: the line has a load that does not fit the lines before, or is no load; give a whole "
      "metrics.jsonl");
  EXPECT_EQ(error(R"({"step": "x", "layers": 3})"),
            "log.jsonl:1: the line has no 'step' and 'layers' as `moebius train` writes them; give a whole "
            "metrics.jsonl");
  EXPECT_EQ(error("{\"step\": 1}\n"),
            "log.jsonl: no step has the load of experts; give the metrics.jsonl of a run of a "
            "model with experts");
  EXPECT_EQ(error(first),
            "error: no forecast 1 steps ahead falls due in the steps asked for; the log has the steps 1 to "
            "1; give a smaller --horizons or a wider range");
  EXPECT_EQ(run("place --ranks 3 " + log),
            "error: --ranks is 3, but the 32 experts of the log must divide among them; give a divisor");
  EXPECT_EQ(run("place --ranks 4 --slots 3 " + log),
            "error: --slots is 3; a rank needs room for 8 to 32 experts");
}

}  // namespace
}  // namespace moebius::cli
