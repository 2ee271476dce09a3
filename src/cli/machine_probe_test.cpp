#include "cli/machine_probe.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/test_folder.h"

namespace moebius::cli {
namespace {

void put(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

std::string processor(int index, int socket, int core, const std::string& flags) {
  return concat("processor\t: ", index, "\nmodel name\t: Test CPU 9000\nphysical id\t: ", socket,
                "\ncore id\t\t: ", core, "\nflags\t\t: ", flags, "\n\n");
}

TEST(CpuProbe, counts_sockets_cores_and_threads) {
  TestFolder proc;
  std::string text;
  for (int socket = 0; socket < 2; ++socket) {
    for (int thread = 0; thread < 4; ++thread)
      text += processor(socket * 4 + thread, socket, thread / 2, "avx2 fma");
  }
  put(proc / "cpuinfo", text);
  const CpuProbe cpu = probe_cpu(proc.path());
  EXPECT_EQ(cpu.model, "Test CPU 9000");
  EXPECT_EQ(cpu.sockets, 2);
  EXPECT_EQ(cpu.cores, 4);
  EXPECT_EQ(cpu.threads, 8);
  EXPECT_GT(cpu.usable_threads, 0);
}

TEST(CpuProbe, tells_instruction_sets_by_whole_words) {
  TestFolder proc;
  put(proc / "cpuinfo", processor(0, 0, 0, "avx2 avx512f avx512_bf16_not amx_tile"));
  const CpuProbe cpu = probe_cpu(proc.path());
  EXPECT_TRUE(cpu.has("avx2"));
  EXPECT_TRUE(cpu.has("avx512f"));
  EXPECT_TRUE(cpu.has("amx_tile"));
  EXPECT_FALSE(cpu.has("avx512_bf16"));
}

TEST(CpuProbe, survives_a_missing_file) {
  TestFolder proc;
  const CpuProbe cpu = probe_cpu(proc.path());
  EXPECT_EQ(cpu.model, "");
  EXPECT_EQ(cpu.threads, 0);
  EXPECT_FALSE(cpu.has("avx2"));
}

TEST(CpuLimit, is_the_smallest_of_a_version_2_group_and_its_parents) {
  TestFolder root;
  put(root / "proc/self/cgroup", "0::/a/b\n");
  put(root / "cgroup/a/b/cpu.max", "max 100000\n");
  put(root / "cgroup/a/cpu.max", "250000 100000\n");
  EXPECT_EQ(probe_cpu_limit(root / "proc", root / "cgroup"), 2.5);
}

TEST(CpuLimit, is_read_from_version_1_groups) {
  TestFolder root;
  put(root / "proc/self/cgroup", "3:cpu,cpuacct:/job\n1:memory:/job\n");
  put(root / "cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  put(root / "cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(probe_cpu_limit(root / "proc", root / "cgroup"), 1.5);
}

TEST(CpuLimit, is_absent_without_a_quota) {
  TestFolder root;
  put(root / "proc/self/cgroup", "1:cpu:/job\n0::/\n");
  put(root / "cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  put(root / "cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_FALSE(probe_cpu_limit(root / "proc", root / "cgroup").has_value());
  EXPECT_FALSE(probe_cpu_limit(root / "none", root / "none").has_value());
}

TEST(SystemProbe, takes_the_pretty_name) {
  TestFolder root;
  put(root / "os-release", "NAME=\"X\"\nPRETTY_NAME=\"Example Linux 7 (seven)\"\n");
  const SystemProbe system = probe_system(root / "os-release");
  EXPECT_EQ(system.distribution, "Example Linux 7 (seven)");
  EXPECT_EQ(system.kernel.rfind("Linux ", 0), 0u);
}

}  // namespace
}  // namespace moebius::cli
