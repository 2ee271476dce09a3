#include "train/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::train {
namespace {

using testing::HasSubstr;

std::string refusal(const std::filesystem::path& folder, RunMode mode) {
  return message_of<UserError>([&] { check_run_folder(folder, mode); });
}

TEST(RunFolder, a_new_or_empty_folder_is_fine_but_cannot_be_resumed) {
  const TestFolder folder;
  EXPECT_EQ(refusal(folder / "new", RunMode::fresh), "");
  EXPECT_EQ(refusal(folder.path(), RunMode::fresh), "");
  EXPECT_THAT(refusal(folder / "new", RunMode::resume), HasSubstr("has no checkpoint to go on from"));
}

TEST(RunFolder, an_existing_run_needs_a_decision) {
  const TestFolder folder;
  write_file_atomic(folder / "config.toml", "");
  EXPECT_THAT(refusal(folder.path(), RunMode::fresh), HasSubstr("--overwrite to start anew"));
  EXPECT_EQ(refusal(folder.path(), RunMode::overwrite), "");
}

TEST(RunFolder, going_on_starts_what_has_no_checkpoint) {
  const TestFolder folder;
  EXPECT_EQ(mode_to_go_on(folder / "new"), RunMode::fresh);
  EXPECT_EQ(mode_to_go_on(folder.path()), RunMode::fresh);
  write_file_atomic(folder / "thesis.txt", "years of work");
  EXPECT_EQ(mode_to_go_on(folder.path()), RunMode::fresh);  // which check_run_folder refuses
  write_file_atomic(folder / "config.toml", "");
  EXPECT_EQ(mode_to_go_on(folder.path()), RunMode::overwrite);
}

TEST(RunFolder, other_peoples_folders_are_never_emptied) {
  const TestFolder folder;
  write_file_atomic(folder / "thesis.txt", "years of work");
  EXPECT_THAT(refusal(folder.path(), RunMode::overwrite), HasSubstr("is not a run"));
  EXPECT_THAT(refusal(folder / "thesis.txt", RunMode::overwrite), HasSubstr("is a file"));
}

TEST(RunFolder, overwriting_removes_the_run_and_keeps_the_lock) {
  const TestFolder folder;
  write_file_atomic(folder / "config.toml", "");
  write_file_atomic(folder / "checkpoints/step-000004/x", "1");
  const ckpt::RunLock lock = open_run_folder(folder.path(), RunMode::overwrite);
  EXPECT_FALSE(std::filesystem::exists(folder / "config.toml"));
  EXPECT_FALSE(std::filesystem::exists(folder / "checkpoints"));
  EXPECT_TRUE(std::filesystem::exists(folder / "run.lock"));
}

}  // namespace
}  // namespace moebius::train
