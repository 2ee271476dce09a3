#include "base/memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "base/file.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

TEST(Memory, an_allocation_shows_in_resident_and_peak) {
  const auto before = process_memory();
  ASSERT_TRUE(before.ok());
  constexpr int64_t kBytes = 64 << 20;
  {
    std::vector<char> block(kBytes, 1);
    EXPECT_GE(process_memory()->resident_bytes, before->resident_bytes + kBytes * 3 / 4);
    ASSERT_EQ(block[kBytes / 2], 1);
  }
  EXPECT_GE(process_memory()->peak_resident_bytes, before->resident_bytes + kBytes * 3 / 4);
}

TEST(Memory, reset_forgets_a_peak_that_is_gone) {
  constexpr size_t kBytes = 64 << 20;
  void* block = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(block, MAP_FAILED);
  std::memset(block, 1, kBytes);
  munmap(block, kBytes);
  const int64_t peak = process_memory()->peak_resident_bytes;
  if (const auto done = reset_peak_memory(); !done.ok()) GTEST_SKIP() << done.error().message;
  EXPECT_LE(process_memory()->peak_resident_bytes, peak - static_cast<int64_t>(kBytes) / 2);
}

TEST(Memory, this_machine_has_some) {
  const auto memory = machine_memory();
  ASSERT_TRUE(memory.ok());
  EXPECT_GT(memory->total_bytes, 64 << 20);
  EXPECT_GT(memory->available_bytes, 0);
  EXPECT_LE(memory->available_bytes, memory->total_bytes);
}

class FakeMachine : public ::testing::Test {
 protected:
  FakeMachine() {
    write("proc/meminfo", "MemTotal:  1000000 kB\nMemFree: 1 kB\nMemAvailable:   600000 kB\n");
  }
  void write(const std::string& name, const std::string& text) { write_file_atomic(folder_ / name, text); }
  Result<MachineMemory> read() { return machine_memory(folder_ / "proc", folder_ / "cgroup"); }
  TestFolder folder_;
};

TEST_F(FakeMachine, without_groups_the_machine_counts) {
  EXPECT_EQ(read()->total_bytes, 1'024'000'000);
  EXPECT_EQ(read()->available_bytes, 614'400'000);
  EXPECT_FALSE(read()->limit_bytes.has_value());
}

TEST_F(FakeMachine, the_tightest_level_of_a_v2_group_limits) {
  write("proc/self/cgroup", "0::/job/step\n");
  write("cgroup/job/memory.max", "200000000\n");
  write("cgroup/job/memory.current", "150000000\n");
  write("cgroup/job/memory.stat", "anon 5\ninactive_file 50000000\n");
  write("cgroup/job/step/memory.max", "max\n");
  EXPECT_EQ(read()->total_bytes, 200'000'000);
  EXPECT_EQ(read()->limit_bytes, 200'000'000);
  EXPECT_EQ(read()->available_bytes, 100'000'000);
}

TEST_F(FakeMachine, a_v1_group_limits_and_its_unlimited_is_none) {
  write("proc/self/cgroup", "4:cpu:/x\n7:memory:/x\n0::/x\n");
  write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_FALSE(read()->limit_bytes.has_value());
  EXPECT_EQ(read()->total_bytes, 1'024'000'000);
  write("cgroup/memory/x/memory.limit_in_bytes", "300000000\n");
  write("cgroup/memory/x/memory.usage_in_bytes", "310000000\n");
  EXPECT_EQ(read()->total_bytes, 300'000'000);
  EXPECT_EQ(read()->available_bytes, 0);
}

TEST_F(FakeMachine, no_meminfo_is_an_error_not_a_guess) {
  remove_tree(folder_ / "proc/meminfo");
  const auto memory = read();
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().kind, ErrorKind::kUnavailable);
}

}  // namespace
}  // namespace moebius
