// The ledger in a run on the CPU: phases from the trainer, joules from the estimate that is asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "train/phase_timer.h"
#include "train/test_run.h"
#include "train/trainer.h"

namespace moebius::train {
namespace {

using testing::HasSubstr;

nlohmann::json json_of(const std::filesystem::path& file) {
  return nlohmann::json::parse(read_file(file));
}

TEST(TrainEnergy, an_estimate_by_phase_sums_to_what_the_process_used) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 40);
  options.config.energy.cpu_watts_per_core = 10;
  options.config.energy.sample_ms = 1;
  options.config.energy.grid_intensity = 360;
  options.config.train.eval_every = 10;
  options.config.checkpoint.every = 20;
  train(options);
  const nlohmann::json summary = json_of(options.run_dir / "summary.json");
  const nlohmann::json& host = summary["energy"]["host"];
  EXPECT_EQ(host["estimated"], true);
  EXPECT_THAT(host["method"].get<std::string>(),
              HasSubstr("estimate: processor time of this process x 10 W"));
  EXPECT_NEAR(host["joules"].get<double>() / host["counter_joules"].get<double>(), 1, 0.02);
  for (const char* phase : {"forward", "backward", "optimizer", "evaluation", "checkpoint"})
    EXPECT_GT(host["phases_joules"].value(phase, 0.0), 0) << phase;
  EXPECT_GT(host["phases_joules"]["backward"], host["phases_joules"]["optimizer"]);
  EXPECT_NEAR(host["carbon_grams"].get<double>(), host["joules"].get<double>() / 1e4, 1e-9);
  EXPECT_EQ(summary["energy"]["grid"],
            "constant 360 g/kWh, lifecycle average, source not named (energy.grid_source)");
  // An estimate is no reading.
  EXPECT_FALSE(summary.contains("energy_joules") &&
               summary["energy_method"].get<std::string>().find("host: none") != std::string::npos);
  std::ifstream lines(options.run_dir / "energy.jsonl");
  std::string line, last;
  while (std::getline(lines, line)) last = line;
  const nlohmann::json end = nlohmann::json::parse(last);
  EXPECT_EQ(end["steps"], 40);
  EXPECT_DOUBLE_EQ(end["host"]["joules"].get<double>(), host["joules"].get<double>());
}

TEST(TrainEnergy, without_sensors_nothing_of_energy_is_in_the_results) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 4);
  options.config.energy.sensors = false;
  options.config.energy.cpu_watts_per_core = 10;
  options.config.energy.grid_intensity = 360;
  train(options);
  const nlohmann::json summary = json_of(options.run_dir / "summary.json");
  EXPECT_FALSE(summary.contains("energy")) << summary.dump();
  EXPECT_EQ(summary["energy_method"],
            "device: none (energy.sensors is false); host: none (energy.sensors is false)");
  EXPECT_FALSE(std::filesystem::exists(options.run_dir / "energy.jsonl"));
}

TEST(TrainEnergy, a_resumed_run_appends_another_session) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 4);
  options.config.energy.cpu_watts_per_core = 10;
  train(options);
  options.config.train.steps = 8;
  options.mode = RunMode::resume;
  train(options);
  const std::string text = read_file(options.run_dir / "energy.jsonl");
  EXPECT_GE(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_THAT(text, HasSubstr(R"("step":4,"steps":4)"));
  EXPECT_THAT(text, HasSubstr(R"("step":8,"steps":4)"));
}

TEST(TrainEnergy, settings_that_cannot_serve_are_refused_before_the_folder_is_touched) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 4);
  const auto refusal = [&] {
    try {
      train(options);
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  options.config.energy.governor = "own";
  EXPECT_THAT(refusal(), HasSubstr("energy.governor is own, but the run is on the CPU"));
  options.config.energy.governor = "off";
  options.config.energy.grid_trace = (folder / "no.csv").string();
  EXPECT_THAT(refusal(), HasSubstr("no.csv"));
  EXPECT_FALSE(std::filesystem::exists(options.run_dir));
}

TEST(PhaseTimer, spans_follow_each_other_without_gaps) {
  FixedClock clock;
  PhaseTimer timer(at::kCPU, clock);
  clock.advance(1);
  timer.mark(energy::Phase::kForward);
  clock.advance(2);
  timer.mark(energy::Phase::kBackward);
  const auto first = timer.take(false);
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0].phase, energy::Phase::kIdle);
  EXPECT_EQ(first[1].phase, energy::Phase::kForward);
  EXPECT_EQ(first[1].begin_seconds, 1);
  EXPECT_EQ(first[1].end_seconds, 3);
  clock.advance(4);
  const auto rest = timer.finish();
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].end_seconds, 7);
}

}  // namespace
}  // namespace moebius::train
