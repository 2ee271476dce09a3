// Memory of this process and of the machine, from /proc and the control group. Linux.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "base/result.h"

namespace moebius {

struct ProcessMemory {
  int64_t resident_bytes = 0;
  int64_t peak_resident_bytes = 0;  // since the start or the last successful reset_peak_memory()
};

Result<ProcessMemory> process_memory();

// Sets the peak to what is resident now (/proc/self/clear_refs); containers may refuse it.
Result<void> reset_peak_memory();

struct MachineMemory {
  int64_t total_bytes = 0;             // the machine's or the control group's limit, whichever is smaller
  int64_t available_bytes = 0;         // what can still be allocated without swapping
  std::optional<int64_t> limit_bytes;  // the control group's, when it has one
};

Result<MachineMemory> machine_memory();

// The same from other roots, for tests: a folder that stands for /proc and one for /sys/fs/cgroup.
Result<MachineMemory> machine_memory(const std::filesystem::path& proc, const std::filesystem::path& cgroup);

}  // namespace moebius
