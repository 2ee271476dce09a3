#include "queue/workload.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "queue/scaling.h"

namespace moebius::queue {
namespace {

class Workload : public testing::Test {
 protected:
  std::filesystem::path file(const std::string& text) {
    write_file_atomic(folder / "w.csv", text);
    return folder / "w.csv";
  }
  std::string error_of(const std::string& text) {
    const auto path = file(text);
    const std::string error = message_of<UserError>([&] { read_jobs(path); });
    return error.substr(std::min(error.size(), error.find(path.string()) + path.string().size()));
  }
  TestFolder folder;
};

TEST_F(Workload, truncates_to_whole_steps_and_sorts_into_two_queues) {
  const auto jobs = read_jobs(file("arrival_s,length_s,cpus\n7.9,7199,2\n0,3601.5,1\n10,7200,1\n20,3,1\n"));
  ASSERT_EQ(jobs.size(), 4u);
  EXPECT_EQ(jobs[0].arrival_s, 5);
  EXPECT_EQ(jobs[0].length_s, 7195);
  EXPECT_EQ(jobs[0].width, 2);
  EXPECT_EQ(jobs[0].budget_s, 6 * 3600);
  EXPECT_EQ(jobs[0].deadline_s(), 5 + 7195 + 6 * 3600);
  EXPECT_EQ(jobs[2].budget_s, 24 * 3600);
  EXPECT_EQ(jobs[2].expected_length_s, 7200);
  EXPECT_EQ(jobs[3].length_s, 5);  // at least a step
  // (7195 + 3600 + 5) / 3, truncated to whole steps.
  EXPECT_EQ(jobs[1].expected_length_s, 3600);
}

TEST_F(Workload, takes_one_budget_known_lengths_and_deadlines) {
  const std::string text = "arrival_s,length_s,cpus,deadline_s\n0,100,1,150\n50,100,1,149\n";
  WorkloadRules rules;
  rules.lengths_known = true;
  const auto jobs = read_jobs(file(text), rules);
  EXPECT_EQ(jobs[0].budget_s, 50);
  EXPECT_FALSE(jobs[0].deadline_unreachable);
  EXPECT_EQ(jobs[1].budget_s, 0);
  EXPECT_TRUE(jobs[1].deadline_unreachable);
  EXPECT_EQ(jobs[1].expected_length_s, 100);
  rules.budget_s = 1000;
  EXPECT_EQ(read_jobs(file("arrival_s,length_s,cpus\n0,100,1\n"), rules)[0].budget_s, 1000);
}

TEST_F(Workload, names_what_is_wrong) {
  EXPECT_EQ(error_of("arrival_s,length_s,cpus\n"), ": holds no job; add rows of arrival_s, length_s, cpus");
  EXPECT_EQ(error_of("arrival_s,length_s,cpus\n0,0,1\n"),
            ", line 2, length_s: '0' is no run time; a job runs for more than 0 s");
  EXPECT_EQ(error_of("arrival_s,length_s,cpus\n-1,5,1\n"),
            ", line 2, arrival_s: '-1' is not in [0, 3162240000]");
  EXPECT_EQ(error_of("arrival_s,length_s,cpus\n0,5,1\n0,5,0\n"),
            ", line 3, cpus: '0' is not in [1, 1000000]");
  EXPECT_EQ(error_of("arrival_s,length_s,cpus\n0,5,1.5\n"), ", line 2, cpus: '1.5' is not a whole number");
  EXPECT_EQ(error_of("arrival_s,length,cpus\n0,5,1\n"),
            ", line 1: there is no column 'length_s' among 'arrival_s', 'length', 'cpus'; is it 'length'?");
}

TEST_F(Workload, reads_scaling_profiles_relative_to_one_worker) {
  const std::string header = "profile,workers,throughput_per_s,power_w\n";
  const auto path = file(header + "a,1,10,50\na,2,16,100\na,3,15,140\nb,1,4,10\n");
  const ScalingProfile a = read_scaling(path, "a");
  EXPECT_EQ(a.max_workers(), 3);
  EXPECT_DOUBLE_EQ(a.speed(2), 1.6);
  EXPECT_DOUBLE_EQ(a.power(3), 2.8);
  EXPECT_EQ(a.fastest(), 2);
  EXPECT_EQ(a.speed(0), 0);
  EXPECT_EQ(read_scaling(path, "b").max_workers(), 1);
  const std::string name = "scaling profiles " + path.string();
  EXPECT_EQ(message_of<UserError>([&] { read_scaling(path); }),
            name + ": holds 2 profiles (a, b); choose one with --profile");
  EXPECT_EQ(message_of<UserError>([&] { read_scaling(path, "bb"); }),
            name + ": has no profile 'bb'; is it 'b'?");
  EXPECT_EQ(
      message_of<UserError>([&] { read_scaling(file(header + "a,1,10,50\na,3,16,100\n")); }),
      name +
          ", line 3, workers: '3' is not 2; a profile has a row for each number of workers, rising from 1");
}

}  // namespace
}  // namespace moebius::queue
