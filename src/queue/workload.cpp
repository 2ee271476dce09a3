#include "queue/workload.h"

#include <algorithm>
#include <cmath>

#include "base/csv.h"
#include "base/error.h"

namespace moebius::queue {
namespace {

constexpr double kMaxSeconds = 100.0 * 366 * 86400;
constexpr int64_t kMaxWidth = 1'000'000;

int64_t whole_steps(double seconds) {
  return static_cast<int64_t>(seconds / kStepSeconds) * kStepSeconds;
}

// Mean length of a queue's jobs, truncated to whole steps.
class QueueMean {
 public:
  void add(int64_t length_s) {
    sum_ += length_s;
    ++count_;
  }
  int64_t value() const {
    if (count_ == 0) return 0;
    return whole_steps(static_cast<double>(sum_) / static_cast<double>(count_));
  }

 private:
  int64_t sum_ = 0, count_ = 0;
};

}  // namespace

std::vector<Job> read_jobs(const std::filesystem::path& file, const WorkloadRules& rules) {
  CsvTable table(file, "jobs");
  const size_t arrival = table.column("arrival_s"), length = table.column("length_s"),
               width = table.column("cpus");
  const auto deadline = table.find_column("deadline_s");
  std::vector<Job> jobs;
  std::vector<bool> is_short;
  QueueMean mean_short, mean_long;
  while (table.next()) {
    Job job;
    job.index = static_cast<int64_t>(jobs.size());
    job.arrival_s = whole_steps(table.number(arrival, 0, kMaxSeconds));
    const double seconds = table.number(length, 0, kMaxSeconds);
    if (seconds <= 0) table.refuse(length, "is no run time; a job runs for more than 0 s");
    job.length_s = std::max(whole_steps(seconds), kStepSeconds);
    job.width = table.whole(width, 1, kMaxWidth);
    is_short.push_back(seconds < static_cast<double>(rules.short_below_s));
    (is_short.back() ? mean_short : mean_long).add(job.length_s);
    job.budget_s = rules.budget_s    ? *rules.budget_s
                   : is_short.back() ? rules.short_budget_s
                                     : rules.long_budget_s;
    if (deadline) {
      const int64_t slack =
          whole_steps(table.number(*deadline, 0, kMaxSeconds)) - job.arrival_s - job.length_s;
      job.budget_s = std::max<int64_t>(slack, 0);
      job.deadline_unreachable = slack < 0;
    }
    jobs.push_back(job);
  }
  if (jobs.empty()) {
    throw_user_error(table.name(), ": holds no job; add rows of arrival_s, length_s, cpus");
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].expected_length_s = rules.lengths_known
                                    ? jobs[i].length_s
                                    : std::max((is_short[i] ? mean_short : mean_long).value(), kStepSeconds);
  }
  return jobs;
}

}  // namespace moebius::queue
