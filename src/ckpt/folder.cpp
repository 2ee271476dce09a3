#include "ckpt/folder.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <string>
#include <system_error>

#include "base/concat.h"
#include "base/log.h"

namespace moebius::ckpt {

namespace fs = std::filesystem;

namespace {
constexpr std::string_view kStepPrefix = "step-";
}

fs::path checkpoints_dir(const fs::path& run_dir) {
  return run_dir / "checkpoints";
}

fs::path step_dir(const fs::path& run_dir, int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step-%06lld", static_cast<long long>(step));
  return checkpoints_dir(run_dir) / name;
}

std::optional<int64_t> step_of(std::string_view folder_name) {
  if (!folder_name.starts_with(kStepPrefix)) return std::nullopt;
  const std::string_view digits = folder_name.substr(kStepPrefix.size());
  if (digits.size() < 6 || (digits.size() > 6 && digits.front() == '0')) return std::nullopt;
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size() || step < 0) return std::nullopt;
  return step;
}

std::vector<int64_t> list_steps(const fs::path& run_dir) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator it(checkpoints_dir(run_dir), error), end; !error && it != end;
       it.increment(error)) {
    if (const auto step = step_of(it->path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

int remove_leftovers(const RunLock& lock) {
  std::vector<fs::path> leftovers;
  std::error_code error;
  for (fs::directory_iterator it(checkpoints_dir(lock.run_dir()), error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(".tmp-") || name.starts_with(".del-")) leftovers.push_back(it->path());
  }
  int removed = 0;
  for (const fs::path& path : leftovers) {
    std::error_code failure;
    fs::remove_all(path, failure);
    if (failure) {
      log_warn("cannot remove '", path.string(), "', left by an earlier process: ", failure.message());
    } else {
      ++removed;
    }
  }
  return removed;
}

void prune(const fs::path& run_dir, int64_t newest, int64_t keep) {
  int64_t kept = 0;
  for (const int64_t step : list_steps(run_dir)) {
    if (step > newest || kept++ < keep) continue;
    const fs::path path = step_dir(run_dir, step);
    const fs::path doomed =
        checkpoints_dir(run_dir) / concat(".del-", path.filename().string().substr(5), "-", ::getpid());
    std::error_code error;
    fs::rename(path, doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error) log_warn("cannot remove the old checkpoint '", path.string(), "': ", error.message());
  }
}

}  // namespace moebius::ckpt
