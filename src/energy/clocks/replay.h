// Replay of governor policies over recorded tables. What comes out is a simulation: recorded times and
// energies of the settings, put together by a policy, with switching charged (energy/clocks/clock_plans.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "energy/clocks/clock_table.h"

namespace moebius::energy::clocks {

struct ReplayOptions {
  double epsilon = 0.03;
  double switch_seconds = 0.02;
  double run_seconds = 14'400;  // at default clocks
  int64_t micro_batches = 8;    // of pipelines
};

struct ReplayResult {
  std::string policy;
  bool available = true;
  std::string why;  // not available
  // Of the whole run; the base is the same number of steps at default clocks (for recorded plans: of the
  // fastest plan, its switches uncharged).
  double seconds = 0, joules = 0, base_seconds = 0, base_joules = 0;
  int64_t steps = 0;
  int64_t changes = 0;            // between plans
  int64_t switches_per_step = 0;  // inside the plan that ran most
  std::string what;               // the plan or plans
  double saving() const { return 1 - joules / base_joules; }
  double slowdown() const { return seconds / base_seconds - 1; }
};

// Names: default, fixed, per-phase, slack, own, article. article: 1500 MHz where the GPU computes (forward,
// backward, step) and 800 MHz elsewhere, each the nearest that was recorded, whatever it costs in time.
const std::vector<std::string>& policy_names();
// UserError naming the nearest when `name` is none of them.
std::string canonical_policy(std::string_view name);

ReplayResult replay(const ClockTable& table, const std::string& policy, const ReplayOptions& options);

}  // namespace moebius::energy::clocks
