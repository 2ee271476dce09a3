#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

int num_entries(const fs::path& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(File, write_then_read_gives_the_same_bytes) {
  TestFolder folder;
  std::string contents(100'000, 'x');
  contents[5] = '\0';
  write_file_atomic(folder / "deep/er/file", contents);
  EXPECT_EQ(read_file(folder / "deep/er/file"), contents);
  EXPECT_EQ(num_entries(folder / "deep/er"), 1);
}

TEST(File, reads_files_without_a_size) {
  EXPECT_THAT(read_file("/proc/self/status"), HasSubstr("VmRSS"));
}

TEST(File, missing_file_is_a_user_error_with_its_path) {
  const auto text = message_of<UserError>([] { read_file("/nowhere/x.txt"); });
  EXPECT_EQ(text, "cannot read '/nowhere/x.txt': No such file or directory; check the path");
  EXPECT_THAT(message_of<UserError>([] { read_file("/tmp"); }), HasSubstr("Is a directory"));
}

TEST(AtomicFile, without_commit_nothing_is_left_and_the_former_file_survives) {
  TestFolder folder;
  write_file_atomic(folder / "a", "before");
  {
    AtomicFile file(folder / "a");
    file.write("after");
    EXPECT_EQ(read_file(folder / "a"), "before");
  }
  EXPECT_EQ(read_file(folder / "a"), "before");
  EXPECT_EQ(num_entries(folder.path()), 1);
}

TEST(AtomicFile, full_disk_while_writing_names_path_and_sizes_and_keeps_the_former_file) {
  TestFolder folder;
  write_file_atomic(folder / "a", "before");
  ScopedDiskLimit limit(1000);
  const auto text = message_of<UserError>([&] {
    AtomicFile file(folder / "a");
    for (int i = 0; i < 10; ++i) file.write(std::string(300, 'x'));
  });
  EXPECT_THAT(text,
              AllOf(HasSubstr("cannot write '" + (folder / "a").string()), HasSubstr("the disk is full"),
                    HasSubstr("at least 1.17 KiB needed, 0 B free in"), HasSubstr("free some space")));
  EXPECT_EQ(read_file(folder / "a"), "before");
  EXPECT_EQ(num_entries(folder.path()), 1);
}

TEST(AtomicFile, full_disk_is_met_before_writing_when_the_size_is_known) {
  TestFolder folder;
  ScopedDiskLimit limit(1000);
  const auto text = message_of<UserError>([&] { AtomicFile file(folder / "a", 4096); });
  EXPECT_THAT(text, HasSubstr("at least 4.00 KiB needed, 1000 B free"));
  EXPECT_EQ(num_entries(folder.path()), 0);
}

TEST(AtomicFile, reservation_larger_than_the_contents_is_given_back) {
  TestFolder folder;
  AtomicFile file(folder / "a", 1 << 20);
  file.write("abc");
  file.commit();
  EXPECT_EQ(read_file(folder / "a"), "abc");
}

TEST(AtomicFile, missing_permission_is_a_user_error) {
  const auto text = message_of<UserError>([] { write_file_atomic("/proc/x", "y"); });
  EXPECT_THAT(text, HasSubstr("cannot write '/proc/x'"));
  TestFolder folder;
  write_file_atomic(folder / "plain", "");
  EXPECT_THAT(message_of<UserError>([&] { write_file_atomic(folder / "plain/x", ""); }), HasSubstr("plain"));
  EXPECT_THAT(message_of<UserError>([&] { write_file_atomic(folder.path(), ""); }),
              HasSubstr("Is a directory"));
}

TEST(AtomicFile, leftovers_of_a_killed_writer_are_removed_but_not_those_of_a_living_one) {
  TestFolder folder;
  if (const pid_t child = fork(); child == 0) {
    AtomicFile file(folder / "dead");
    file.write("half");
    _exit(0);  // as a kill: no destructor
  } else {
    int status = 0;
    waitpid(child, &status, 0);
  }
  AtomicFile living(folder / "living");
  write_file_atomic(folder / "whole", "x");
  EXPECT_EQ(num_entries(folder.path()), 3);
  EXPECT_EQ(remove_stale_temporaries(folder.path()), 1);
  living.commit();
  EXPECT_TRUE(fs::exists(folder / "living"));
  EXPECT_TRUE(fs::exists(folder / "whole"));
}

TEST(MappedFile, parts_stay_readable_behind_hints) {
  const TestFolder folder;
  const std::string text(50'000, 'x');
  write_file_atomic(folder / "a", text);
  const MappedFile map(folder / "a");
  for (const size_t begin : {size_t{0}, size_t{1}, size_t{4096}, size_t{49'999}}) {
    map.will_read(begin, text.size() - begin);
    map.was_read(begin, text.size() - begin);
    map.was_read(begin, 0);
    EXPECT_EQ(map.text(), text);
  }
  const MappedFile nothing;
  nothing.will_read(0, 0);
  nothing.was_read(0, 0);
}

TEST(MappedFile, maps_moves_and_refuses) {
  TestFolder folder;
  write_file_atomic(folder / "a", "hello");
  write_file_atomic(folder / "empty", "");
  MappedFile map(folder / "a");
  map.advise(MappedFile::Access::kRandom);
  MappedFile moved(std::move(map));
  EXPECT_EQ(moved.text(), "hello");
  EXPECT_EQ(map.size(), 0u);  // NOLINT: moved-from is empty
  moved = MappedFile(folder / "empty");
  EXPECT_TRUE(moved.bytes().empty());
  EXPECT_THAT(message_of<UserError>([] { MappedFile("/nowhere/x"); }), HasSubstr("cannot read '/nowhere/x'"));
}

TEST(AppendFile, goes_on_behind_what_is_known_to_be_whole) {
  TestFolder folder;
  const fs::path path = folder / "work/log", result = folder / "result";
  {
    AppendFile file(path);
    file.write("first ", 6);
    file.sync();
    file.write("never synced", 12);
    EXPECT_EQ(file.num_bytes(), 18);
  }
  EXPECT_EQ(read_file(path), "first ");
  std::ofstream(path, std::ios::app) << "torn";
  AppendFile file(path, 6);
  file.write("second", 6);
  file.publish(result);
  EXPECT_EQ(read_file(result), "first second");
  EXPECT_FALSE(fs::exists(path));
  EXPECT_EQ(message_of<UserError>([&] { AppendFile(result, 20); }),
            "'" + result.string() + "' has 12 bytes, expected at least 20; it was damaged, remove it");
}

TEST(AppendFile, a_full_disk_is_named) {
  TestFolder folder;
  AppendFile file(folder / "log");
  const ScopedDiskLimit full(10);
  file.write(std::string(20, 'x').data(), 20);
  EXPECT_THAT(message_of<UserError>([&] { file.sync(); }),
              AllOf(HasSubstr("cannot write"), HasSubstr("the disk is full, 0 B free")));
}

TEST(Folders, a_lock_is_held_by_one_at_a_time) {
  TestFolder folder;
  std::atomic<int> inside{0}, most{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        const FolderLock lock(folder / "work");
        most = std::max(most.load(), ++inside);
        --inside;
        fs::remove_all(folder / "work");  // as a builder does at its end: from here on the next one may come
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
}

TEST(Folders, publishing_replaces_a_folder_of_that_name) {
  TestFolder folder;
  write_file_atomic(folder / "tmp1/a", "1");
  publish_folder(folder / "tmp1", folder / "final");
  write_file_atomic(folder / "tmp2/b", "2");
  publish_folder(folder / "tmp2", folder / "final");
  EXPECT_FALSE(fs::exists(folder / "final/a"));
  EXPECT_EQ(read_file(folder / "final/b"), "2");
  EXPECT_EQ(num_entries(folder.path()), 1);
  remove_tree(folder / "final");
  remove_tree(folder / "final");
  EXPECT_EQ(num_entries(folder.path()), 0);
}

TEST(Folders, free_bytes_of_a_path_that_does_not_exist_yet) {
  EXPECT_GT(free_bytes("/tmp/not/yet/there"), 0);
  EXPECT_GT(free_bytes("relative-and-missing"), 0);
}

}  // namespace
}  // namespace moebius
