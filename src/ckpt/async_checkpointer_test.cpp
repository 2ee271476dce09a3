#include "ckpt/async_checkpointer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "ckpt/folder.h"
#include "ckpt/snapshot.h"
#include "ckpt/test_tensors.h"

namespace moebius::ckpt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

std::vector<TensorGroup> loaded_from(const Checkpoint& checkpoint, const std::vector<TensorGroup>& like) {
  std::vector<TensorGroup> loaded = zeros_like(like);
  checkpoint.load(loaded);
  return loaded;
}

// Files and folders whose name begins with a dot.
std::vector<std::string> leftovers(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(checkpoints_dir(run))) {
    if (entry.path().filename().string().starts_with(".")) names.push_back(entry.path().filename());
  }
  return names;
}

TEST(AsyncCheckpointer, saves_the_values_of_the_moment_of_the_call) {
  const TestFolder run;
  const RunLock lock(run.path());
  AsyncCheckpointer checkpointer(lock, {});
  std::vector<TensorGroup> groups = example_groups(1);
  EXPECT_FALSE(checkpointer.last_step().has_value());
  for (int64_t step = 1; step <= 4; ++step) {
    const std::vector<TensorGroup> values = example_groups(static_cast<uint64_t>(step));
    for (size_t g = 0; g < groups.size(); ++g) {
      for (size_t i = 0; i < groups[g].tensors.size(); ++i) {
        groups[g].tensors[i].tensor.copy_(values[g].tensors[i].tensor);
      }
    }
    ASSERT_TRUE(checkpointer.save({step, "", "{}"}, groups).ok());
    for (const TensorGroup& group : groups) {
      for (const NamedTensor& named : group.tensors) named.tensor.zero_();  // training goes on at once
    }
  }
  ASSERT_TRUE(checkpointer.finish().ok());
  EXPECT_FALSE(checkpointer.busy());
  EXPECT_EQ(checkpointer.last_step(), 4);
  EXPECT_THAT(list_steps(run.path()), ElementsAre(4, 3));
  for (const int64_t step : {3, 4}) {
    const std::vector<TensorGroup> values = example_groups(static_cast<uint64_t>(step));
    EXPECT_EQ(first_difference(loaded_from(Checkpoint::open(step_dir(run.path(), step)), values), values), "")
        << step;
  }
}

TEST(AsyncCheckpointer, background_and_foreground_write_the_same_bytes) {
  const TestFolder first, second;
  const std::vector<TensorGroup> groups = example_groups(3);
  for (const TestFolder* folder : {&first, &second}) {
    const RunLock lock(folder->path());
    AsyncCheckpointer checkpointer(lock, {.save = {.shard_bytes = 4000}, .background = folder == &first});
    ASSERT_TRUE(checkpointer.save({1, "", "{}"}, groups).ok());
    ASSERT_TRUE(checkpointer.finish().ok());
  }
  EXPECT_EQ(contents_of(first / "checkpoints"), contents_of(second / "checkpoints"));
}

TEST(AsyncCheckpointer, removes_what_killed_writers_left) {
  const TestFolder run;
  fs::create_directories(checkpoints_dir(run.path()) / ".tmp-000200-1");
  const RunLock lock(run.path());
  const AsyncCheckpointer checkpointer(lock, {});
  EXPECT_THAT(leftovers(run.path()), IsEmpty());
}

TEST(AsyncCheckpointer, full_disk_is_reported_once_and_the_previous_checkpoint_survives) {
  for (const bool background : {true, false}) {
    const TestFolder run;
    const RunLock lock(run.path());
    AsyncCheckpointer checkpointer(lock, {.save = {.keep = 1}, .background = background});
    const std::vector<TensorGroup> groups = example_groups(1);
    ASSERT_TRUE(checkpointer.save({100, "", "{}"}, groups).ok());
    ASSERT_TRUE(checkpointer.finish().ok());
    std::string message;
    {
      const ScopedDiskLimit limit(10000);
      const Result<void> now = checkpointer.save({200, "", "{}"}, groups);
      const Result<void> later = checkpointer.finish();
      EXPECT_EQ(now.ok(), background);
      EXPECT_EQ(later.ok(), !background);
      message = (background ? later : now).error().message;
    }
    EXPECT_THAT(message, StartsWith("checkpoint of step 200 ("));
    EXPECT_THAT(message,
                AllOf(HasSubstr("was not saved: cannot write '"), HasSubstr("the disk is full; at least "),
                      HasSubstr(" needed, "), HasSubstr(" free in '"), HasSubstr("step-000100' is intact.")));
    EXPECT_THAT(leftovers(run.path()), IsEmpty());
    EXPECT_EQ(find_latest(run.path())->step(), 100);
    // Training goes on, and the next save works.
    ASSERT_TRUE(checkpointer.save({300, "", "{}"}, groups).ok());
    ASSERT_TRUE(checkpointer.finish().ok());
    EXPECT_THAT(list_steps(run.path()), ElementsAre(300));
  }
}

TEST(AsyncCheckpointer, limit_on_file_size_is_reported) {
  const TestFolder run;
  const RunLock lock(run.path());
  AsyncCheckpointer checkpointer(lock, {});
  const std::vector<TensorGroup> groups = example_groups(1);
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit { 4096, before.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Result<void> now = checkpointer.save({1, "", "{}"}, groups);
  const Result<void> later = checkpointer.finish();
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);
  EXPECT_TRUE(now.ok());
  ASSERT_FALSE(later.ok());
  EXPECT_THAT(later.error().message,
              AllOf(HasSubstr("File too large"), HasSubstr("no earlier checkpoint in this run")));
  EXPECT_THAT(leftovers(run.path()), IsEmpty());
}

TEST(AsyncCheckpointer, really_full_file_system_is_reported) {
  const TestFolder run;
  if (::mount("none", run.path().c_str(), "tmpfs", 0, "size=256k") != 0)
    GTEST_SKIP() << "may not mount a small tmpfs";
  {
    const RunLock lock(run.path());
    AsyncCheckpointer checkpointer(lock, {});
    const std::vector<TensorGroup> small = {{"model", {{"w", at::ones({100})}}}};
    const std::vector<TensorGroup> large = {{"model", {{"w", at::ones({100000})}}}};
    ASSERT_TRUE(checkpointer.save({100, "", "{}"}, small).ok());
    ASSERT_TRUE(checkpointer.save({200, "", "{}"}, large).ok());
    const Result<void> result = checkpointer.finish();
    ASSERT_FALSE(result.ok());
    EXPECT_THAT(
        result.error().message,
        AllOf(
            StartsWith("checkpoint of step 200 (391 KiB) was not saved: the disk is full: 391 KiB needed, "),
            HasSubstr("lower checkpoint.keep or choose another run folder"),
            HasSubstr("step-000100' is intact.")));
    EXPECT_EQ(find_latest(run.path())->step(), 100);
  }
  ::umount(run.path().c_str());
}

TEST(AsyncCheckpointer, folder_without_permission_is_reported) {
  const TestFolder run;
  const RunLock lock(run.path());
  AsyncCheckpointer checkpointer(lock, {});
  std::ofstream(checkpoints_dir(run.path())) << "a file where the folder should be";
  ASSERT_TRUE(checkpointer.save({1, "", "{}"}, example_groups(1)).ok());
  const Result<void> result = checkpointer.finish();
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("was not saved: cannot make the folder"));
}

TEST(Snapshot, memory_is_used_again_and_given_back) {
  Snapshot snapshot;
  const auto groups = [](int64_t elements) {
    return std::vector<TensorGroup>{{"model", {{"a", at::ones({elements})}, {"b", at::ones({3})}}}};
  };
  snapshot.capture(groups(1000));
  EXPECT_EQ(snapshot.host_bytes(), 4012u);
  const auto address = [&] {
    const std::byte* first = nullptr;
    snapshot.groups()[0].tensors[0].emit([&](std::span<const std::byte> piece) { first = piece.data(); });
    return first;
  };
  const std::byte* before = address();
  snapshot.capture(groups(1000));
  EXPECT_EQ(address(), before);
  EXPECT_EQ(snapshot.host_bytes(), 4012u);
  snapshot.capture(groups(2000));  // grows by a second slab: tensors may lie across two
  EXPECT_EQ(snapshot.host_bytes(), 8012u);
  size_t emitted = 0;
  snapshot.groups()[0].tensors[0].emit([&](std::span<const std::byte> piece) { emitted += piece.size(); });
  EXPECT_EQ(emitted, 8000u);
  snapshot.capture(groups(10));
  EXPECT_LE(snapshot.host_bytes(), 4012u);
}

}  // namespace
}  // namespace moebius::ckpt
