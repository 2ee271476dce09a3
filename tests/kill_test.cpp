// A run that is killed again and again, at any moment, ends with the same files as one that was left alone.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include "tests/child_process.h"
#include "tests/tiny_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

constexpr int kSteps = 60;

std::vector<std::string> arguments(const std::string& config, const fs::path& run, bool resume) {
  std::vector<std::string> list{"train", config, "--run", run.string(), "--device", "cpu", "--threads", "1"};
  if (resume) list.emplace_back("--resume");
  return list;
}

TEST(Kill, a_run_killed_at_random_moments_resumes_to_the_same_end) {
  const TestFolder folder;
  const std::string config = write_tiny_config(folder, kSteps);
  const fs::path straight = folder / "straight", killed = folder / "killed";
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run_program(arguments(config, straight, false)).code, 0);
  // Kills fall into the run however fast the machine is.
  const auto whole =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin);

  const unsigned seed = std::random_device()();
  std::mt19937 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  int num_kills = 0, num_resumed = 0;
  Finished last;
  for (int attempt = 0; attempt < 200; ++attempt) {
    const bool has_checkpoint = fs::exists(killed / "checkpoints/step-000003") || num_resumed > 0;
    std::vector<std::string> list = arguments(config, killed, has_checkpoint);
    if (!has_checkpoint && fs::exists(killed)) list.emplace_back("--overwrite");
    ChildProcess child(list);
    if (num_kills < 12) {
      std::this_thread::sleep_for(whole * (5 + random() % 70) / 100);
      child.signal(SIGKILL);
    }
    last = child.wait();
    if (last.code == 0) break;
    if (last.code != 128 + SIGKILL) {
      // It may have ended between the last check and the kill, having done all steps.
      ASSERT_EQ(last.code, 2) << last.errors;
      ASSERT_NE(last.errors.find("has done 60 steps"), std::string::npos) << last.errors;
      break;
    }
    ++num_kills;
    num_resumed += has_checkpoint;
  }
  EXPECT_GT(num_kills, 0);
  for (const fs::directory_entry& entry : fs::directory_iterator(straight / "checkpoints/step-000060")) {
    const fs::path other = killed / "checkpoints/step-000060" / entry.path().filename();
    ASSERT_TRUE(fs::exists(other)) << other;
    EXPECT_TRUE(read_file(entry.path()) == read_file(other)) << other;
  }
}

TEST(Kill, a_build_of_a_corpus_killed_at_random_moments_goes_on_to_the_same_files) {
  const TestFolder folder;
  const unsigned seed = std::random_device()();
  std::mt19937 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::string lines;
  for (int i = 0; i < 40000; ++i) {
    lines += "{\"text\": \"document " + std::to_string(i % 9 == 0 ? i / 2 : i);
    for (size_t k = random() % 100; k > 0; --k) lines += " " + std::to_string(random() % 50000);
    lines += "\"}\n";
  }
  write_file_atomic(folder / "lines.jsonl", lines);
  const auto build = [&](const std::string& out) {
    return std::vector<std::string>{"data",
                                    "build",
                                    (folder / "lines.jsonl").string(),
                                    "--out",
                                    (folder / out).string(),
                                    "--duplicates",
                                    "near",
                                    "--commit-mib",
                                    "1"};
  };
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run_program(build("straight")).code, 0);
  const auto whole =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin);
  int num_kills = 0;
  Finished last;
  for (int attempt = 0; attempt < 60; ++attempt) {
    ChildProcess child(build("killed"));
    if (num_kills < 12) {
      std::this_thread::sleep_for(whole * (5 + random() % 60) / 100);
      child.signal(SIGKILL);
    }
    last = child.wait();
    if (last.code == 0) break;
    ASSERT_EQ(last.code, 128 + SIGKILL) << last.errors;
    ++num_kills;
  }
  EXPECT_GT(num_kills, 0);
  EXPECT_EQ(last.code, 0) << last.errors;
  for (const char* end : {".bin", ".idx", ".json"}) {
    EXPECT_TRUE(read_file(folder / ("straight" + std::string(end))) ==
                read_file(folder / ("killed" + std::string(end))))
        << end;
  }
  EXPECT_FALSE(fs::exists(folder / ".killed.building"));
}

}  // namespace
}  // namespace moebius
