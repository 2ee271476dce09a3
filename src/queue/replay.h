// Replays jobs against a recorded grid: what a policy would have emitted, and what it would have cost in
// time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "queue/policy.h"

namespace moebius::queue {

// What really was: intensity of steps, step 0 begins at time 0 of the replay.
struct Grid {
  std::span<const double> grams_per_kwh;
  int64_t step_s = 3600;

  int64_t end_s() const { return step_s * static_cast<int64_t>(grams_per_kwh.size()); }
};

struct ReplayOptions {
  std::optional<int64_t> capacity = std::nullopt;  // cpus; none: unlimited
  int64_t switch_s = 0;  // time at full power without progress after a pause or a change of size
  double watts_per_cpu = 1;
};

struct JobResult {
  double start_s = 0, finish_s = 0;
  double carbon_g = 0, energy_kwh = 0;
  double wait_s = 0;  // finish later than at once at its own size: finish - arrival - length, at least 0
  int64_t resizes = 0;
  bool missed = false;  // finished after its deadline
};

struct Summary {
  double carbon_g = 0, energy_kwh = 0;
  double mean_wait_s = 0;
  double p95_wait_s = 0;  // linear between neighbours
  int64_t deadline_misses = 0;
  int64_t resizes = 0;  // pauses, resumes and changes of size
};

// Jobs decide in the order of time, of equal times in the order of the list. Deterministic. Every job must be
// able to finish inside the grid; UserError when one cannot, and for a job wider than the capacity.
std::vector<JobResult> replay(std::span<const Job> jobs, const Grid& grid, const Policy& policy,
                              ForecastSource& forecasts, const ScalingProfile& scaling,
                              const ReplayOptions& options);

Summary summarize(std::span<const JobResult> results);

}  // namespace moebius::queue
