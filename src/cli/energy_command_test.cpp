#include "cli/energy_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/test_folder.h"
#include "cli/command_output.h"

namespace moebius::cli {
namespace {

using ::testing::HasSubstr;

class EnergyCommand : public ::testing::Test {
 protected:
  EnergyCommand() { write_file_atomic(run_ / "config.toml", ""); }

  // Two processes: the first crashed, and its last line is torn.
  void write_run() {
    write_file_atomic(
        run_ / "energy.jsonl",
        R"({"session":"a","step":5,"steps":5,"tokens":500,"seconds":10,"gpu":{"joules":1000,"estimated":false,"phases_joules":{"forward":400,"backward":600},"phases_seconds":{"forward":4,"backward":6},"counter_joules":1010,"carbon_grams":0.1,"method":"NVML"},"grid":"constant 360 g/kWh"}
{"session":"a","step":10,"steps":10,"tokens":1000,"seconds":20,"gpu":{"joules":2000,"estimated":false,"phases_joules":{"forward":800,"backward":1200},"phases_seconds":{"forward":8,"backward":12},"counter_joules":2010,"carbon_grams":0.2,"method":"NVML"},"grid":"constant 360 g/kWh"}
{"session":"b","step":12,"steps":4,"tokens":400,"seconds":8,"gpu":{"joules":800,"estimated":false,"phases_joules":{"forward":300,"backward":480,"idle":20},"phases_seconds":{"forward":3,"backward":4.5,"idle":0.5},"counter_joules":790,"carbon_grams":0.08,"method":"NVML"},"grid":"constant 360 g/kWh"}
{"session":"b","st)");
  }

  TestFolder folder_;
  std::filesystem::path run_ = folder_ / "run";
};

TEST_F(EnergyCommand, report_sums_over_the_processes_of_a_run) {
  write_run();
  const auto json =
      nlohmann::json::parse(output_of(add_energy_report_command, "report --json " + run_.string()));
  EXPECT_EQ(json["sessions"], 2);
  EXPECT_EQ(json["tokens"], 1400);
  EXPECT_EQ(json["gpu"]["basis"], "measured");
  EXPECT_DOUBLE_EQ(json["gpu"]["joules"], 2800);
  EXPECT_DOUBLE_EQ(json["gpu"]["counter_joules"], 2800);
  EXPECT_DOUBLE_EQ(json["gpu"]["joules_per_token"], 2);
  EXPECT_DOUBLE_EQ(json["gpu"]["joules_per_step"], 200);
  EXPECT_DOUBLE_EQ(json["gpu"]["phases"]["backward"]["joules"], 1680);
  EXPECT_NEAR(json["gpu"]["carbon_grams"], 0.28, 1e-12);
  EXPECT_FALSE(json.contains("host"));
}

TEST_F(EnergyCommand, report_prints_a_table_and_draws) {
  write_run();
  const std::string svg = folder_ / "e.svg";
  const std::string text = output_of(add_energy_report_command, "report " + run_.string() + " --plot " + svg);
  EXPECT_THAT(text, HasSubstr("GPU, measured"));
  EXPECT_THAT(text, HasSubstr("phases sum to 100.00 % of the counter's 2800.0 J"));
  EXPECT_THAT(text, HasSubstr("carbon: constant 360 g/kWh"));
  EXPECT_THAT(read_file(svg), HasSubstr("1680 J, 60.0 % of energy, 58.9 % of time"));
}

TEST_F(EnergyCommand, report_says_why_there_is_nothing) {
  write_file_atomic(run_ / "summary.json",
                    R"x({"energy_method": "device: none (no GPU is used); host: none (no RAPL)"})x");
  EXPECT_THAT(output_of(add_energy_report_command, "report " + run_.string()),
              HasSubstr("has no energy.jsonl: device: none (no GPU is used); host: none (no RAPL)"));
  EXPECT_THAT(output_of(add_energy_report_command, "report " + folder_.path().string()),
              HasSubstr("is not a run folder"));
  write_file_atomic(run_ / "energy.jsonl", "{\"x\":1}\n");
  EXPECT_THAT(output_of(add_energy_report_command, "report " + run_.string()),
              HasSubstr("line 1: is not a line"));
}

TEST_F(EnergyCommand, simulate_prints_every_policy_with_its_basis) {
  const std::string table = folder_ / "t.csv";
  write_file_atomic(table,
                    "gpu,phase,clock_mhz,time_s,energy_j\nX,forward,1000,1.02,300\nX,forward,1400,1,400\n"
                    "X,backward,1000,2.2,700\nX,backward,1400,2,850\n");
  const auto json = nlohmann::json::parse(
      output_of(add_energy_simulate_command,
                "simulate --json --policy own,fixed,per-phase --switch-ms 5,20 --table " + table));
  EXPECT_EQ(json["rows"].size(), 6u);
  EXPECT_EQ(json["rows"][0]["basis"], "simulated over recorded tables");
  EXPECT_EQ(json["summary"].size(), 6u);
  EXPECT_EQ(json["summary"][1]["own_at_least"], 1);
  EXPECT_GT(json["rows"][0]["saving"], 0.05);
  EXPECT_THAT(output_of(add_energy_simulate_command, "simulate --table " + table),
              HasSubstr("at most 3.0 % slower; simulated over recorded tables"));
  EXPECT_THAT(output_of(add_energy_simulate_command, "simulate --only nothing --table " + table),
              HasSubstr("error: none of the 1 tables"));
  EXPECT_THAT(output_of(add_energy_simulate_command, "simulate --policy ownn --table " + table),
              HasSubstr("did you mean own?"));
}

}  // namespace
}  // namespace moebius::cli
