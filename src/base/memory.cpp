#include "base/memory.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

namespace moebius {
namespace {

std::optional<std::string> read_text(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) return std::nullopt;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// The number after "key" at the start of a line ("VmHWM:    1234 kB", "inactive_file 99").
std::optional<int64_t> number_after(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::istringstream rest(line.substr(key.size()));
    int64_t value = 0;
    if (rest >> value) return value;
  }
  return std::nullopt;
}

std::optional<int64_t> read_number(const std::filesystem::path& path) {
  const auto text = read_text(path);
  return text ? number_after(*text, "") : std::nullopt;  // "max" is no number: no limit
}

struct Group {
  int64_t limit_bytes;
  int64_t used_bytes;
};

// One level of a control group; cached file pages that the kernel can drop do not count as used.
std::optional<Group> read_group(const std::filesystem::path& folder, bool unified) {
  const auto limit = read_number(folder / (unified ? "memory.max" : "memory.limit_in_bytes"));
  if (!limit) return std::nullopt;
  const int64_t used =
      read_number(folder / (unified ? "memory.current" : "memory.usage_in_bytes")).value_or(0);
  const auto stat = read_text(folder / "memory.stat");
  const char* key = unified ? "inactive_file " : "total_inactive_file ";
  const int64_t droppable = stat ? number_after(*stat, key).value_or(0) : 0;
  return Group{*limit, std::max<int64_t>(used - droppable, 0)};
}

// The control group of this process: v2 ("0::/path") or the v1 memory controller ("7:memory:/path").
struct GroupPath {
  std::filesystem::path root;
  std::string path;
  bool unified;
};
std::optional<GroupPath> find_group(const std::filesystem::path& proc, const std::filesystem::path& cgroup) {
  const auto text = read_text(proc / "self/cgroup");
  if (!text) return std::nullopt;
  std::optional<GroupPath> found;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers.find(",memory,") != std::string::npos) return GroupPath{cgroup / "memory", path, false};
    if (controllers == ",,") found = GroupPath{cgroup, path, true};
  }
  return found;
}

}  // namespace

Result<ProcessMemory> process_memory() {
  const auto text = read_text("/proc/self/status");
  if (!text) return make_error(ErrorKind::kUnavailable, "cannot read /proc/self/status");
  const auto resident = number_after(*text, "VmRSS:");
  const auto peak = number_after(*text, "VmHWM:");
  if (!resident) return make_error(ErrorKind::kUnavailable, "/proc/self/status has no VmRSS");
  return ProcessMemory{*resident * 1024, std::max(peak.value_or(0), *resident) * 1024};
}

Result<void> reset_peak_memory() {
  std::ofstream out("/proc/self/clear_refs");
  out << "5" << std::flush;
  if (!out)
    return make_error(ErrorKind::kPermission, "cannot write /proc/self/clear_refs: ", std::strerror(errno));
  return {};
}

Result<MachineMemory> machine_memory() {
  return machine_memory("/proc", "/sys/fs/cgroup");
}

Result<MachineMemory> machine_memory(const std::filesystem::path& proc, const std::filesystem::path& cgroup) {
  const auto text = read_text(proc / "meminfo");
  if (!text) return make_error(ErrorKind::kUnavailable, "cannot read ", (proc / "meminfo").string());
  const auto total = number_after(*text, "MemTotal:");
  const auto available = number_after(*text, "MemAvailable:");
  if (!total) return make_error(ErrorKind::kUnavailable, "no MemTotal in ", (proc / "meminfo").string());
  MachineMemory memory{*total * 1024, available.value_or(*total) * 1024, std::nullopt};
  const auto group = find_group(proc, cgroup);
  if (!group) return memory;
  // Every level up to the root may limit. Inside a container the path may name a folder that is not mounted
  // there; the container's own group is then the root.
  std::filesystem::path below = std::filesystem::path(group->path).relative_path();
  while (true) {
    if (const auto level = read_group(group->root / below, group->unified)) {
      if (level->limit_bytes < memory.total_bytes) {  // "unlimited" of v1 is a huge number
        memory.total_bytes = level->limit_bytes;
        memory.limit_bytes = level->limit_bytes;
      }
      memory.available_bytes =
          std::min(memory.available_bytes, std::max<int64_t>(level->limit_bytes - level->used_bytes, 0));
    }
    if (below.empty()) break;
    below = below.parent_path();
  }
  return memory;
}

}  // namespace moebius
