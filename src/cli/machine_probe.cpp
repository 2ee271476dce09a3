#include "cli/machine_probe.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "base/concat.h"

namespace moebius::cli {

namespace {

// Names as /proc/cpuinfo writes them; shown in this order.
constexpr const char* kInstructionSets[] = {"avx2",     "fma",         "f16c",        "avx512f",
                                            "avx512bw", "avx512_bf16", "avx512_vnni", "avx_vnni",
                                            "amx_tile", "amx_bf16",    "amx_int8"};

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\n");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
}

std::optional<int64_t> read_number(const std::filesystem::path& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

int usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

// Folders of a control group from its own up to the root: a limit of any of them holds.
std::vector<std::filesystem::path> group_and_parents(const std::filesystem::path& root,
                                                     const std::string& group) {
  std::vector<std::filesystem::path> folders;
  for (std::filesystem::path path = std::filesystem::path(group).relative_path();;
       path = path.parent_path()) {
    folders.push_back(path.empty() ? root : root / path);
    if (path.empty()) return folders;
  }
}

std::optional<double> limit_of_v2(const std::filesystem::path& folder) {
  std::ifstream file(folder / "cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return std::nullopt;
  try {
    return std::stod(quota) / period;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

std::optional<double> limit_of_v1(const std::filesystem::path& folder) {
  const auto quota = read_number(folder / "cpu.cfs_quota_us");
  const auto period = read_number(folder / "cpu.cfs_period_us");
  if (!quota || !period || *quota <= 0 || *period <= 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

}  // namespace

bool CpuProbe::has(const std::string& name) const {
  return std::any_of(instruction_sets.begin(), instruction_sets.end(),
                     [&](const auto& set) { return set.first == name && set.second; });
}

CpuProbe probe_cpu(const std::filesystem::path& proc) {
  CpuProbe cpu;
  std::set<std::string> sockets, cores, flags;
  std::string socket = "0", line;
  std::ifstream file(proc / "cpuinfo");
  while (std::getline(file, line)) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
    if (key == "processor") {
      ++cpu.threads;
    } else if (key == "model name" && cpu.model.empty()) {
      cpu.model = value;
    } else if (key == "physical id") {
      socket = value;
      sockets.insert(value);
    } else if (key == "core id") {
      cores.insert(concat(socket, "/", value));
    } else if (key == "flags" && flags.empty()) {
      std::istringstream words(value);
      for (std::string word; words >> word;) flags.insert(word);
    }
  }
  cpu.sockets = std::max<int>(1, static_cast<int>(sockets.size()));
  cpu.cores = cores.empty() ? cpu.threads : static_cast<int>(cores.size());
  cpu.usable_threads = usable_threads();
  for (const char* name : kInstructionSets) cpu.instruction_sets.emplace_back(name, flags.count(name) != 0);
  return cpu;
}

std::optional<double> probe_cpu_limit(const std::filesystem::path& proc,
                                      const std::filesystem::path& cgroup) {
  std::optional<double> lowest;
  const auto consider = [&](std::optional<double> limit) {
    if (limit && (!lowest || *limit < *lowest)) lowest = limit;
  };
  std::ifstream file(proc / "self" / "cgroup");
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      for (const auto& folder : group_and_parents(cgroup, group)) consider(limit_of_v2(folder));
      continue;
    }
    std::istringstream names(controllers);
    for (std::string name; std::getline(names, name, ',');) {
      if (name != "cpu") continue;
      for (const char* mount : {"cpu", "cpu,cpuacct"}) {
        for (const auto& folder : group_and_parents(cgroup / mount, group)) consider(limit_of_v1(folder));
      }
    }
  }
  return lowest;
}

SystemProbe probe_system(const std::filesystem::path& os_release) {
  SystemProbe system;
  std::ifstream file(os_release);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("PRETTY_NAME=", 0) != 0) continue;
    system.distribution = line.substr(std::strlen("PRETTY_NAME="));
    std::erase(system.distribution, '"');
  }
  utsname names{};
  if (uname(&names) == 0) system.kernel = concat(names.sysname, " ", names.release, " ", names.machine);
  return system;
}

}  // namespace moebius::cli
