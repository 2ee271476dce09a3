#include "telemetry/jsonl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::telemetry {
namespace {

using Json = nlohmann::ordered_json;

class Jsonl : public ::testing::Test {
 protected:
  std::string text() const { return read_file(path_); }
  TestFolder folder_;
  std::filesystem::path path_ = folder_ / "run/metrics.jsonl";
};

TEST_F(Jsonl, one_object_per_line_at_once) {
  JsonlWriter writer(path_);
  writer.write({{"step", 1}, {"loss", 2.5}});
  writer.write({{"step", 2}, {"loss", std::numeric_limits<double>::quiet_NaN()}, {"text", "a\nb"}});
  EXPECT_EQ(text(), "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":null,\"text\":\"a\\nb\"}\n");
}

TEST_F(Jsonl, resume_cuts_later_steps_so_that_none_appears_twice) {
  {
    JsonlWriter writer(path_);
    for (int step = 1; step <= 5; ++step) writer.write({{"step", step}});
  }
  {
    JsonlWriter writer(path_, 3);
    writer.write({{"step", 4}, {"again", true}});
  }
  EXPECT_EQ(text(), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4,\"again\":true}\n");
  { JsonlWriter writer(path_, 0); }
  EXPECT_EQ(text(), "");
}

TEST_F(Jsonl, a_torn_last_line_is_dropped_on_resume) {
  write_file_atomic(path_, "{\"step\":1}\n{\"note\":\"no step\"}\n{\"st");
  { JsonlWriter writer(path_, 100); }
  EXPECT_EQ(text(), "{\"step\":1}\n{\"note\":\"no step\"}\n");
  write_file_atomic(path_, "{\"step\":1}\n{\"st\n");
  { JsonlWriter writer(path_, 100); }
  EXPECT_EQ(text(), "{\"step\":1}\n");
}

TEST_F(Jsonl, without_resume_the_file_starts_empty) {
  write_file_atomic(path_, "{\"step\":1}\n");
  { JsonlWriter writer(path_); }
  EXPECT_EQ(text(), "");
  { JsonlWriter writer(folder_ / "fresh.jsonl", 7); }
  EXPECT_EQ(read_file(folder_ / "fresh.jsonl"), "");
}

TEST_F(Jsonl, a_killed_process_loses_at_most_one_line) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    JsonlWriter writer(path_);
    for (int step = 1;; ++step) {
      writer.write({{"step", step}});
      if (step == 200 && write(ready[1], "x", 1) != 1) _exit(1);
    }
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
  { JsonlWriter writer(path_, 200); }
  std::istringstream lines(text());
  int expected = 0;
  for (std::string line; std::getline(lines, line);) EXPECT_EQ(Json::parse(line)["step"], ++expected);
  EXPECT_EQ(expected, 200);
}

TEST_F(Jsonl, full_disk_warns_once_and_leaves_whole_lines) {
  JsonlWriter writer(path_);
  writer.write({{"step", 1}});
  // A limit on the file's size behaves as a full disk does.
  rlimit former{};
  getrlimit(RLIMIT_FSIZE, &former);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4000, former.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  ::testing::internal::CaptureStderr();
  writer.write({{"step", 2}, {"padding", std::string(10000, 'x')}});
  writer.write({{"step", 3}, {"padding", std::string(10000, 'x')}});
  const std::string log = ::testing::internal::GetCapturedStderr();
  setrlimit(RLIMIT_FSIZE, &former);
  signal(SIGXFSZ, handler);
  writer.write({{"step", 4}});
  EXPECT_EQ(text(), "{\"step\":1}\n{\"step\":4}\n");
  EXPECT_EQ(writer.num_lost(), 2);
  EXPECT_THAT(log, ::testing::StartsWith("warning: cannot write '" + path_.string()));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1);
}

TEST_F(Jsonl, a_folder_in_the_way_is_a_user_error) {
  make_folders(path_);
  EXPECT_THAT(message_of<UserError>([&] { JsonlWriter writer(path_); }),
              ::testing::HasSubstr("cannot write '" + path_.string() + "': Is a directory"));
}

}  // namespace
}  // namespace moebius::telemetry
