// Jobs as the replay sees them: when they come, how long they run, how wide they are, how long they can wait.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace moebius::queue {

// Times are whole steps of 5 s, as in GAIA's simulator (Hanafy et al., ASPLOS 2024); finer ones are
// truncated.
inline constexpr int64_t kStepSeconds = 5;

struct Job {
  int64_t index = 0;                  // row of the file, from 0
  int64_t arrival_s = 0;              // seconds after the begin of the replay
  int64_t length_s = 0;               // run time at its own width, on one worker of its scaling profile
  int64_t width = 1;                  // cpus: multiplies power, and counts against the capacity
  int64_t expected_length_s = 0;      // what policies that do not know the length go by
  int64_t budget_s = 0;               // longest wait: the deadline is arrival + length + budget
  bool deadline_unreachable = false;  // the file's deadline lies before arrival + length

  int64_t deadline_s() const { return arrival_s + length_s + budget_s; }
};

// Rules for what the file leaves open. The defaults are GAIA's: two queues by length.
struct WorkloadRules {
  int64_t short_below_s = 2 * 3600;
  int64_t short_budget_s = 6 * 3600;
  int64_t long_budget_s = 24 * 3600;
  std::optional<int64_t> budget_s = std::nullopt;  // one for all jobs instead of the two queues
  bool lengths_known = false;  // expected length: the job's own, else the mean of its queue
};

// CSV, plain or .gz, with arrival_s, length_s, cpus and, optionally, deadline_s (seconds after the begin,
// beats the rules; an earlier one than the job can meet gives budget 0). Any order of rows. UserError naming
// file, line, column and value otherwise, and for a file without jobs.
std::vector<Job> read_jobs(const std::filesystem::path& file, const WorkloadRules& rules = {});

}  // namespace moebius::queue
