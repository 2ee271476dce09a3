#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "cli/command_output.h"
#include "cli/queue_command.h"

namespace moebius::cli {
namespace {

class QueueSimulate : public testing::Test {
 protected:
  // 40 days from 2031-01-01 with 100 g/kWh at night and 300 from 08:00 to 20:00.
  std::string grid() {
    std::string text = "utc_iso8601,lifecycle_g_per_kwh,direct_g_per_kwh,estimated\n";
    for (int64_t hour = 0; hour < 40 * 24; ++hour) {
      const bool day = hour % 24 >= 8 && hour % 24 < 20;
      text += iso_time(1924992000.0 + 3600.0 * static_cast<double>(hour)) +
              (day ? ",300,250,0\n" : ",100,50,0\n");
    }
    return file("XX-TEST.csv", text);
  }
  std::string file(const std::string& name, const std::string& text) {
    write_file_atomic(folder / name, text);
    return (folder / name).string();
  }
  std::string jobs() { return file("jobs.csv", "arrival_s,length_s,cpus\n36000,3600,2\n36000,7200,1\n"); }

  // What `moebius queue simulate ARGUMENTS` prints on stdout; the text of a UserError after "error: ".
  std::string run(const std::string& arguments) {
    return output_of(add_queue_command, "queue simulate " + arguments);
  }
  nlohmann::json json(const std::string& arguments) {
    return nlohmann::json::parse(run("--jobs " + jobs() + " --carbon " + grid() + " --json " + arguments));
  }
  TestFolder folder;
};

TEST_F(QueueSimulate, prints_what_scripts_read) {
  // Both arrive at 10:00. Now: 2 Wh + 2 Wh at 300. The first may wait 6 h, which does not reach the night;
  // the second 24 h.
  const auto now = json("--year 2031");
  EXPECT_EQ(now["policy"], "now");
  EXPECT_NEAR(now["carbon_g"].get<double>(), 1.2, 1e-12);
  EXPECT_EQ(now["carbon_relative_to_now"], 1.0);
  EXPECT_NEAR(now["energy_kwh"].get<double>(), 0.004, 1e-15);
  EXPECT_EQ(now["zone"], "XX-TEST");
  EXPECT_EQ(now["signal"], "lifecycle average");
  EXPECT_EQ(now["basis"], "simulated");
  EXPECT_EQ(now["capacity"], nullptr);

  const auto window = json("--year 2031 --policy lowest_window --forecast oracle");
  EXPECT_NEAR(window["carbon_g"].get<double>(), 0.8, 1e-12);
  EXPECT_NEAR(window["carbon_relative_to_now"].get<double>(), 2.0 / 3, 1e-12);
  EXPECT_EQ(window["mean_wait_s"], 18000.0);  // 0 and 10 h
  EXPECT_EQ(window["p95_wait_s"], 0.95 * 36000);
  EXPECT_EQ(window["deadline_misses"], 0);
  EXPECT_EQ(window["resizes"], 0);
  EXPECT_EQ(window["jobs"], 2);
}

TEST_F(QueueSimulate, honest_forecasts_know_only_the_past) {
  // At hour 10 of the trace not even a day is known: the forecast is flat and nothing waits.
  EXPECT_EQ(json("--policy lowest_window --forecast persistence")["carbon_relative_to_now"], 1.0);
  // A week later the day is known.
  EXPECT_NEAR(json("--start-hour 168 --policy lowest_window --forecast seven_day")["carbon_g"].get<double>(),
              0.8, 1e-12);
}

TEST_F(QueueSimulate, takes_deadlines_slack_capacity_and_scope) {
  EXPECT_NEAR(json("--policy wait_awhile --slack-hours 24")["carbon_g"].get<double>(), 0.4, 1e-12);
  EXPECT_NEAR(json("--scope direct")["carbon_g"].get<double>(), 1.0, 1e-12);
  EXPECT_EQ(json("--capacity 2")["deadline_misses"], 0);  // the second waits an hour of its 24
  EXPECT_EQ(json("--capacity 2")["mean_wait_s"], 1800.0);
  const std::string late =
      file("late.csv", "arrival_s,length_s,cpus,deadline_s\n36000,3600,2,36000\n36000,3600,1,86400\n");
  const auto result = nlohmann::json::parse(
      run("--jobs " + late + " --carbon " + grid() + " --policy lowest_window --lengths known --json"));
  EXPECT_EQ(result["deadline_misses"], 1);
  EXPECT_NEAR(result["carbon_g"].get<double>(), 0.7, 1e-12);
}

TEST_F(QueueSimulate, compares_policies_in_a_table) {
  const auto runs =
      json("--policy now,Lowest-Window --forecast oracle,persistence --start-hour 0,24")["runs"];
  ASSERT_EQ(runs.size(), 8u);
  EXPECT_EQ(runs[7]["policy"], "lowest_window");
  EXPECT_EQ(runs[7]["forecast"], "persistence");
  EXPECT_EQ(runs[7]["start_hour"], 24);
  const std::string table = run("--jobs " + jobs() + " --carbon " + grid() + " --policy now,lowest_window");
  EXPECT_NE(
      table.find("zone XX-TEST, lifecycle average intensity, recorded 2031-01-01 to 2031-02-09; 2 jobs"),
      std::string::npos)
      << table;
  EXPECT_NE(table.find("lowest_window  oracle              0.8 g  0.6667"), std::string::npos) << table;
}

TEST_F(QueueSimulate, jobs_behind_the_end_are_left_out_and_counted) {
  const std::string two = file("two.csv", "arrival_s,length_s,cpus\n0,3600,1\n3400000,90000,1\n");
  const auto result =
      nlohmann::json::parse(run("--jobs " + two + " --carbon " + grid() + " --days 60 --json"));
  EXPECT_EQ(result["jobs"], 1);
  EXPECT_EQ(result["jobs_left_out"], 1);
}

TEST_F(QueueSimulate, writes_what_came_out_for_each_job) {
  const std::string out = (folder / "per_job.csv").string();
  json("--policy lowest_window --per-job " + out);
  EXPECT_EQ(read_file(out),
            "job,arrival_s,start_s,finish_s,wait_s,carbon_g,carbon_now_g,energy_kwh,resizes,missed\n"
            "0,36000,36000,39600,0,0.6,0.6,0.002,0,0\n"
            "1,36000,72000,79200,36000,0.2,0.6,0.002,0,0\n");
}

TEST_F(QueueSimulate, bad_input_is_named) {
  const std::string both = "--jobs " + jobs() + " --carbon " + grid();
  EXPECT_EQ(run(both + " --policy lowest_windows")
                .find("error: --policy is 'lowest_windows', which is none of now, "),
            0u);
  EXPECT_NE(run(both + " --policy lowest_windows").find("; is it lowest_window?"), std::string::npos);
  EXPECT_EQ(run(both + " --forecast prophet")
                .find("error: --forecast is 'prophet', which is none of oracle, persistence, "),
            0u);
  EXPECT_EQ(run(both + " --year 2030"),
            "error: year 2030 does not begin in the carbon trace of XX-TEST, which runs from 2031-01-01 to "
            "2031-02-09; "
            "choose another --year or another file");
  EXPECT_EQ(run(both + " --start-hour 2000"),
            "error: --start-hour 2000 of 2031 lies behind the carbon trace of XX-TEST, which ends on "
            "2031-02-09; lower it or "
            "choose an earlier --year");
  EXPECT_EQ(run("--jobs " + file("late.csv", "arrival_s,length_s,cpus\n864000,60,1\n") + " --carbon " +
                grid() + " --days 2"),
            "error: no job of " + (folder / "late.csv").string() +
                " can be replayed from hour 0 of 2031: 0 of 1 arrive within --days 2; raise it");
  EXPECT_EQ(
      run("--jobs " + file("bad.csv", "arrival_s,length_s,cpus\n0,-5,1\n") + " --carbon " + grid()),
      "error: jobs " + (folder / "bad.csv").string() + ", line 2, length_s: '-5' is not in [0, 3162240000]");
  EXPECT_EQ(run(both + " --capacity 1"),
            "error: job 0 needs 2 cpus, but --capacity is 1; raise it to 2 or leave the job out");
  EXPECT_EQ(run(both + " --days 0").find("usage: --days: Value 0 not in range"), 0u);
  EXPECT_EQ(run(both + " --scope upstream"), "error: --scope is 'upstream'; use lifecycle or direct");
  EXPECT_EQ(run(both + " --lengths guessed"), "error: --lengths is 'guessed'; use queue_mean or known");
}

}  // namespace
}  // namespace moebius::cli
