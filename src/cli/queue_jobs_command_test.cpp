#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "cli/command_output.h"
#include "cli/queue_command.h"
#include "cli/queue_folder.h"

namespace moebius::cli {
namespace {

class QueueJobs : public testing::Test {
 protected:
  // What `moebius queue COMMAND --queue FOLDER ...` prints; of add, the part behind -- comes last.
  std::string run(const std::string& command, const std::string& arguments = {}) {
    return output_of(add_queue_command,
                     "queue " + command + " --queue " + (folder / "q").string() + " " + arguments);
  }
  nlohmann::json show(int id) { return nlohmann::json::parse(run("show", std::to_string(id) + " --json")); }
  TestFolder folder;
};

TEST_F(QueueJobs, are_added_listed_and_shown) {
  EXPECT_NE(run("add", "--duration 1h30m --slack 2h --priority 3 --watts 700 --name first -- sh -c true")
                .find("job 1 added: to be done by 20"),
            std::string::npos);
  EXPECT_NE(run("add", "--duration 60 --times 3 -- echo {index}").find("jobs 2 to 4 added"),
            std::string::npos);
  const std::string list = run("list");
  EXPECT_NE(list.find("      1  waiting      3    1.5h    0%  20"), std::string::npos) << list;
  EXPECT_NE(list.find("first\n"), std::string::npos);
  const auto job = show(1);
  EXPECT_EQ(job["command"], (std::vector<std::string>{"sh", "-c", "true"}));
  EXPECT_EQ(job["length_s"], 5400.0);
  EXPECT_EQ(job["can_pause"], false);
  EXPECT_EQ(job["basis"], "estimated");
  EXPECT_EQ(show(4)["command"][1], "2");
  EXPECT_NE(run("show", "1").find("state            waiting\n"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(run("list", "--json")).size(), 4u);
}

TEST_F(QueueJobs, a_training_can_pause_and_goes_on) {
  run("add", "--duration 4h -- bin/moebius train a.toml");
  EXPECT_EQ(show(1)["can_pause"], true);
  EXPECT_EQ(show(1)["command"].back(), "--continue");
  run("add", "--duration 4h --no-pause -- moebius train a.toml --continue");
  EXPECT_EQ(show(2)["can_pause"], false);
  EXPECT_EQ(show(2)["command"].size(), 4u);
  EXPECT_EQ(run("add", "--duration 4h -- moebius train a.toml --overwrite")
                .find("error: a queued `moebius train` cannot have --overwrite"),
            0u);
}

TEST_F(QueueJobs, are_held_released_and_cancelled) {
  run("add", "--duration 1h --hold -- true");
  EXPECT_EQ(show(1)["state"], "held");
  EXPECT_EQ(run("resume", "1"), "job 1: waiting\n");
  EXPECT_EQ(run("pause", "1"), "job 1: held\n");
  EXPECT_EQ(run("cancel", "1"), "job 1: cancelled\n");
  EXPECT_EQ(run("resume", "1"), "job 1: cancelled\n");
  EXPECT_EQ(run("list").find("cancelled"), std::string::npos);
  EXPECT_NE(run("list", "--all").find("cancelled"), std::string::npos);
}

TEST_F(QueueJobs, are_run_until_none_is_left) {
  run("add", "--duration 1m --name good -- sh -c 'echo hello from $MOEBIUS_QUEUE_JOB'");
  run("add", "--duration 1m --name bad -- sh -c 'exit 4'");
  run("add", "--duration 1m --hold -- true");
  EXPECT_EQ(run("run", "--until-empty --tick 0.01"), "");
  EXPECT_EQ(show(1)["state"], "done");
  EXPECT_EQ(read_file(folder / "q/jobs/1/log"), "hello from 1\n");
  EXPECT_EQ(show(2)["state"], "failed");
  EXPECT_EQ(show(2)["exit_code"], 4);
  EXPECT_EQ(show(3)["state"], "held");
}

TEST_F(QueueJobs, see_what_is_expected_of_the_grid) {
  std::string grid = "utc_iso8601,lifecycle_g_per_kwh,direct_g_per_kwh\n";
  for (int hour = 0; hour < 40 * 24; ++hour)
    grid +=
        iso_time(1924992000.0 + 3600.0 * hour) + "," + std::to_string(200 + 100 * (hour % 24 < 12)) + ",50\n";
  write_file_atomic(folder / "XX.csv", grid);
  const std::string arguments = " --carbon " + (folder / "XX.csv").string() + " ";
  const auto forecast = nlohmann::json::parse(output_of(
      add_queue_command, "queue forecast --grid-time 2031-01-30T06:00Z --hours 12 --json" + arguments));
  EXPECT_EQ(forecast["signal"], "lifecycle average");
  ASSERT_EQ(forecast["steps"].size(), 12u);
  EXPECT_EQ(forecast["steps"][0]["begin"], "2031-01-30T06:00:00Z");
  EXPECT_NEAR(forecast["steps"][0]["value"].get<double>(), 300, 1);
  EXPECT_NEAR(forecast["steps"][7]["value"].get<double>(), 200, 1);
  EXPECT_LE(forecast["steps"][7]["low"], forecast["steps"][7]["high"]);
  const std::string text =
      output_of(add_queue_command, "queue forecast --grid-time 2031-01-30T06:00Z" + arguments);
  EXPECT_NE(text.find("lifecycle average intensity, g/kWh; 90 % interval\n2031-01-30T06:00:00Z     300"),
            std::string::npos)
      << text;
  EXPECT_NE(output_of(add_queue_command, "queue forecast --check-days 10" + arguments)
                .find(" 24 h ahead: 100.0 % inside"),
            std::string::npos);
  EXPECT_NE(output_of(add_queue_command, "queue forecast --grid-time 2030-01-01" + arguments)
                .find("error: nothing is known of the grid"),
            std::string::npos);
}

TEST_F(QueueJobs, wrong_input_is_named) {
  EXPECT_EQ(run("list").find("error: there is no queue in "), 0u);
  EXPECT_EQ(run("add", "--duration soon -- true"),
            "error: --duration is 'soon'; use a time such as 90s, 45m, 4h, 1h30m or 2d");
  EXPECT_EQ(run("add", "--duration 1h --deadline tomorrow -- true"),
            "error: --deadline is 'tomorrow'; use a time in UTC such as 2031-05-17T09:00Z");
  EXPECT_EQ(run("add", "--duration 1h"),
            "error: queue add needs a command: queue add --duration 4h -- COMMAND ...");
  EXPECT_NE(run("add", "--duration 4h --deadline 2020-01-01 -- true").find("which it cannot meet"),
            std::string::npos);
  EXPECT_EQ(run("show", "99").find("error: there is no job 99 in "), 0u);
  EXPECT_EQ(run("run", "--policy own"), "error: --policy own needs --carbon, the grid to go by");
}

TEST(QueueTimes, are_read_strictly) {
  EXPECT_EQ(parse_duration("1h30m", "x"), 5400);
  EXPECT_EQ(parse_duration("2d", "x"), 172800);
  EXPECT_EQ(parse_duration("90", "x"), 90);
  EXPECT_EQ(parse_time("2031-01-01", "x"), 1924992000);
  EXPECT_EQ(parse_time("2031-01-01T12:30Z", "x"), 1924992000 + 45000);
  EXPECT_EQ(parse_time("2031-01-01T12:30:05", "x"), 1924992000 + 45005);
  for (const char* text : {"", "h", "1x", "-1h", "1h-2m"})
    EXPECT_THROW((void)parse_duration(text, "x"), UserError) << text;
  for (const char* text :
       {"2031-13-01", "2031-02-30", "2031-01-01T25:00Z", "2031-01-01Tx", "2031-01-01T00:00+02"})
    EXPECT_THROW((void)parse_time(text, "x"), UserError) << text;
}

}  // namespace
}  // namespace moebius::cli
