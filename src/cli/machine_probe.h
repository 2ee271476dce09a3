// What `moebius doctor` reads about the machine from /proc and /sys. Linux; nothing is changed. A value that
// cannot be read is absent (empty, zero or nullopt), never an exception. The roots are arguments so that
// tests can bring a tree.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moebius::cli {

struct CpuProbe {
  std::string model;
  int sockets = 0;
  int cores = 0;           // physical, over all sockets
  int threads = 0;         // logical processors that are online
  int usable_threads = 0;  // what this process may run on (affinity)
  // Instruction sets that kernels of moebius or libtorch choose by, in a fixed order.
  std::vector<std::pair<std::string, bool>> instruction_sets;

  bool has(const std::string& name) const;
};
CpuProbe probe_cpu(const std::filesystem::path& proc = "/proc");

// CPU time limit of this process's control group in cores (version 2 `cpu.max`, version 1
// `cpu.cfs_quota_us`).
std::optional<double> probe_cpu_limit(const std::filesystem::path& proc = "/proc",
                                      const std::filesystem::path& cgroup = "/sys/fs/cgroup");

struct SystemProbe {
  std::string distribution;  // PRETTY_NAME of os-release
  std::string kernel;
};
SystemProbe probe_system(const std::filesystem::path& os_release = "/etc/os-release");

}  // namespace moebius::cli
