// The checkpoints of a run: RUN/checkpoints/step-000200/. Names that begin with a dot are on their way in or
// out and are never read: ".tmp-000200-<pid>" is being written, ".del-000200-<pid>" is being removed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "ckpt/run_lock.h"

namespace moebius::ckpt {

std::filesystem::path checkpoints_dir(const std::filesystem::path& run_dir);
std::filesystem::path step_dir(const std::filesystem::path& run_dir, int64_t step);

// The step in a folder name like "step-000200"; nullopt for any other name.
std::optional<int64_t> step_of(std::string_view folder_name);

// Steps with a folder, newest first, whether good or not.
std::vector<int64_t> list_steps(const std::filesystem::path& run_dir);

// Removes what a killed writer left. The lock says that no writer is alive. Returns the number of folders
// removed.
int remove_leftovers(const RunLock& lock);

// Removes old checkpoints so that `keep` are left of those up to `newest` (which stays). Later steps are not
// touched. A folder disappears from the list in one step, before its files go. Failures are logged: old files
// too many are no reason to stop.
void prune(const std::filesystem::path& run_dir, int64_t newest, int64_t keep);

}  // namespace moebius::ckpt
