#include "ckpt/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "base/error.h"
#include "base/test_folder.h"
#include "ckpt/folder.h"

namespace moebius::ckpt {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(RunLock, second_holder_is_refused_and_told_who_has_it) {
  const TestFolder folder;
  std::optional<RunLock> first(folder / "run");
  const std::string message = message_of<UserError>([&] { RunLock second(folder / "run"); });
  EXPECT_THAT(message, StartsWith(concat("run folder '", (folder / "run").string(), "' is in use by process ",
                                         ::getpid(), " on ")));
  EXPECT_THAT(message, HasSubstr("wait for it to end, stop it, or choose another folder with --run"));
  first.reset();
  RunLock again(folder / "run");
}

TEST(RunLock, ends_with_the_process_that_held_it) {
  const TestFolder folder;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const RunLock lock(folder.path());
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_THAT(message_of<UserError>([&] { RunLock lock(folder.path()); }),
              HasSubstr(concat("process ", child)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  RunLock lock(folder.path());
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(Folder, step_names_are_read_strictly) {
  EXPECT_EQ(step_of("step-000200"), 200);
  EXPECT_EQ(step_of("step-1234567"), 1234567);
  EXPECT_EQ(step_dir("r", 42).filename(), "step-000042");
  for (const char* name : {"step-200", "step-0001234567", "step--00001", "step-00020x", ".tmp-000200-1",
                           "step-", "step-99999999999999999999"}) {
    EXPECT_FALSE(step_of(name).has_value()) << name;
  }
}

TEST(Folder, leftovers_go_and_everything_else_stays) {
  const TestFolder folder;
  for (const char* name : {".tmp-000200-1", ".del-000100-9", "step-000100", "notes"}) {
    std::filesystem::create_directories(checkpoints_dir(folder.path()) / name / "x");
  }
  EXPECT_EQ(remove_leftovers(RunLock(folder.path())), 2);
  EXPECT_FALSE(std::filesystem::exists(checkpoints_dir(folder.path()) / ".tmp-000200-1"));
  EXPECT_TRUE(std::filesystem::exists(checkpoints_dir(folder.path()) / "step-000100" / "x"));
  EXPECT_TRUE(std::filesystem::exists(checkpoints_dir(folder.path()) / "notes"));
}

TEST(Folder, pruning_keeps_the_newest_up_to_the_one_just_written) {
  const TestFolder folder;
  for (const int64_t step : {100, 200, 300, 400, 900})
    std::filesystem::create_directories(step_dir(folder.path(), step));
  prune(folder.path(), 400, 2);
  EXPECT_EQ(list_steps(folder.path()), (std::vector<int64_t>{900, 400, 300}));
}

}  // namespace
}  // namespace moebius::ckpt
