// The helper that makes sure of the reset: moebius-powerd is two processes. The guard, which does nothing but
// wait, starts the worker that serves; when the worker ends in whatever way, the guard resets every GPU that
// the worker had written down as locked. When the guard ends first, the worker is told by the kernel and ends
// properly. What both leave behind when they are killed at once is reset by the next start (or
// `moebius-powerd --reset`).
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace moebius::energy::powerd {

// The list of locked GPUs, written atomically; an empty one removes the file.
void write_locks(const std::filesystem::path& file, const std::vector<std::string>& uuids);

// Resets the GPUs of the list and removes it. How many were reset; those that could not be stay in the list.
int reset_listed(const std::filesystem::path& file, const std::string& nvml_library);

// Runs `serve` in a child and waits for it; SIGTERM and SIGINT are passed on to it. Then reset_listed.
// Returns serve's own result, or 1 when the worker was killed. No thread may exist yet.
int run_guarded(const std::filesystem::path& locks, const std::string& nvml_library,
                const std::function<int()>& serve);

}  // namespace moebius::energy::powerd
