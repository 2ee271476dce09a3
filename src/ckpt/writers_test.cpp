// Several processes that write one checkpoint, each a thread here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "ckpt/checkpoint.h"
#include "ckpt/folder.h"
#include "ckpt/tensor_bytes.h"
#include "ckpt/test_tensors.h"

namespace moebius::ckpt {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kWriters = 3;

// Tensors are dealt out in turn; a writer knows the others' specs only.
std::vector<PendingGroup> part_of_writer(const std::vector<TensorGroup>& groups, int rank) {
  std::vector<PendingGroup> pending;
  int next = 0;
  for (const TensorGroup& group : groups) {
    PendingGroup& entry = pending.emplace_back();
    entry.name = group.name;
    for (const NamedTensor& named : group.tensors) {
      PendingTensor tensor{spec_of(named.name, named.tensor), {}};
      tensor.writer = next++ % kWriters;
      if (tensor.writer == rank)
        tensor.emit = [values = named.tensor](const ByteSink& sink) { emit_bytes(values, sink); };
      entry.tensors.push_back(std::move(tensor));
    }
  }
  return pending;
}

// What each writer ended with; "" when all went well.
std::vector<std::string> write_all(const fs::path& run, const std::vector<TensorGroup>& groups,
                                   const std::string& attempt, int failing = -1, double timeout_s = 60) {
  std::vector<std::string> messages(kWriters);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kWriters; ++rank) {
    threads.emplace_back([&, rank] {
      std::vector<PendingGroup> part = part_of_writer(groups, rank);
      if (rank == failing) {
        for (PendingTensor& tensor : part[0].tensors)
          if (tensor.emit) tensor.emit = [](const ByteSink&) { throw UserError("no room on this node"); };
      }
      messages[static_cast<size_t>(rank)] = message_of<UserError>([&] {
        write_checkpoint(run, {7, "config", "{}"}, part, {.shard_bytes = 4000},
                         {.rank = rank, .count = kWriters, .attempt = attempt, .timeout_s = timeout_s});
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return messages;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

TEST(Writers, make_one_checkpoint_of_their_shards) {
  const TestFolder run;
  const std::vector<TensorGroup> groups = example_groups(1);
  for (const std::string& message : write_all(run.path(), groups, "a")) EXPECT_EQ(message, "");
  const Checkpoint checkpoint = Checkpoint::open(step_dir(run.path(), 7));
  std::vector<TensorGroup> loaded = zeros_like(groups);
  checkpoint.load(loaded);
  EXPECT_EQ(first_difference(loaded, groups), "");
  EXPECT_GE(checkpoint.manifest().shards.size(), 4u);
  EXPECT_THAT(names_in(checkpoints_dir(run.path())), testing::ElementsAre("step-000007"));
  for (const std::string& name : names_in(checkpoint.path())) EXPECT_NE(name[0], '.') << name;
}

TEST(Writers, a_failure_of_one_is_the_firsts_too_and_nothing_is_published) {
  const TestFolder run;
  const std::vector<TensorGroup> groups = example_groups(1);
  const std::vector<std::string> messages = write_all(run.path(), groups, "b", 2);
  EXPECT_THAT(messages[0], HasSubstr("process 2 could not write its shards: no room on this node"));
  EXPECT_EQ(messages[1], "");
  EXPECT_THAT(messages[2], HasSubstr("no room on this node"));
  EXPECT_TRUE(names_in(checkpoints_dir(run.path())).empty());
  for (const std::string& message : write_all(run.path(), groups, "c")) EXPECT_EQ(message, "");
}

TEST(Writers, the_first_does_not_wait_for_ever) {
  const TestFolder run;
  const std::vector<TensorGroup> groups = example_groups(1);
  const std::vector<PendingGroup> part = part_of_writer(groups, 0);
  EXPECT_THAT(message_of<UserError>([&] {
                write_checkpoint(run.path(), {7, "", "{}"}, part, {},
                                 {.rank = 0, .count = kWriters, .attempt = "d", .timeout_s = 0.02});
              }),
              HasSubstr("process 1 has not written its shards within 0.02 s"));
  EXPECT_TRUE(names_in(checkpoints_dir(run.path())).empty());
}

}  // namespace
}  // namespace moebius::ckpt
