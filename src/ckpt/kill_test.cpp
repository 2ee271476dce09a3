// A process that saves without pause is killed at random moments: whatever is found afterwards is whole, its
// contents are those of its step, and no finished checkpoint was lost.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <thread>

#include "base/parallel.h"
#include "base/test_folder.h"
#include "ckpt/async_checkpointer.h"
#include "ckpt/folder.h"
#include "ckpt/test_tensors.h"

namespace moebius::ckpt {
namespace {

std::vector<TensorGroup> groups_of(int64_t step) {
  return {{"model", {{"w", at::full({61, 67}, step, at::kFloat)}, {"b", at::full({5}, step, at::kLong)}}},
          {"optimizer", {{"w.m", at::full({61, 67}, -step, at::kFloat)}}}};
}

// Resumes from the newest and saves step after step; tells the parent each step that is complete.
[[noreturn]] void save_forever(const std::filesystem::path& run, int report) {
  try {
    const RunLock lock(run);
    AsyncCheckpointer checkpointer(lock, {.save = {.shard_bytes = 4096, .keep = 2}});
    std::optional<Checkpoint> latest = find_latest(run);
    for (int64_t step = latest ? latest->step() + 1 : 1;; ++step) {
      const std::string state = concat("{\"step\": ", step, "}");
      if (!checkpointer.save({step, "", state}, groups_of(step)).ok()) ::_exit(3);
      const int64_t done = step - 1;  // save() waited for it
      if (checkpointer.last_step() && ::write(report, &done, sizeof done) != sizeof done) ::_exit(4);
    }
  } catch (const std::exception& error) {
    ::fprintf(stderr, "child: %s\n", error.what());
    ::_exit(2);
  }
}

TEST(Kill, newest_checkpoint_is_whole_after_sigkill_at_any_moment) {
  const TestFolder run;
  const int threads = num_threads();
  set_num_threads(1);  // a team of threads would not survive fork
  std::mt19937 random(1);
  int64_t newest = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  for (int round = 0; round < 40 && std::chrono::steady_clock::now() < deadline; ++round) {
    int report[2];
    ASSERT_EQ(::pipe(report), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_forever(run.path(), report[1]);
    ::close(report[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 120000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "child ended by itself with " << WEXITSTATUS(status);
    int64_t done = newest;
    for (int64_t step = 0; ::read(report[0], &step, sizeof step) == sizeof step;) done = step;
    ::close(report[0]);

    const std::optional<Checkpoint> latest = find_latest(run.path());
    if (!latest) {
      ASSERT_EQ(done, 0) << "a complete checkpoint disappeared";
      continue;
    }
    newest = latest->step();
    ASSERT_GE(newest, done) << "a complete checkpoint disappeared";
    ASSERT_EQ(latest->state_json(), concat("{\"step\":", newest, "}"));
    const std::vector<TensorGroup> expected = groups_of(newest);
    std::vector<TensorGroup> loaded = zeros_like(expected);
    latest->load(loaded);
    ASSERT_EQ(first_difference(loaded, expected), "") << "step " << newest;
  }
  set_num_threads(threads);
  EXPECT_GT(newest, 5);
  // The next writer cleans up, and what it keeps is all that is there.
  const RunLock lock(run.path());
  const AsyncCheckpointer checkpointer(lock, {});
  for (const auto& entry : std::filesystem::directory_iterator(checkpoints_dir(run.path()))) {
    EXPECT_TRUE(step_of(entry.path().filename().string()).has_value()) << entry.path();
    Checkpoint::open(entry.path());
  }
  EXPECT_LE(list_steps(run.path()).size(), 3u);
}

}  // namespace
}  // namespace moebius::ckpt
