// Which plan the next step runs under: the governor's decisions, free of clocks, sockets and sensors. The
// same object decides in a training run and in the simulator.
//
// Modes. off: the base. fixed: the best single clock. per_phase: the best plan with a clock per phase. slack:
// the best plan that is not slower than the base, so that only waits are spent. own: two neighbours on the
// convex hull of the plans, one within the allowed slowdown and one beyond it, in turns, so that the run uses
// up what it is allowed and no more:
//   - a bucket gets epsilon x base time with every step and gives what a step took beyond the base;
//   - the slow plan never begins a step that would empty it, so at every moment the run is at most epsilon
//   slower
//     than it would have been, whatever the profile promised (times are measured, not taken from it); but for
//     what a single step took longer than the one before it;
//   - hysteresis: the slow plan begins when the bucket is full and ends when it is empty; the bucket is so
//     large that changing between the plans takes at most `most_switching` of the time;
//   - when even the fast plan overdraws it by a hundredth of a step, the run goes on at default clocks until
//   there
//     is room again (this holds in every mode);
//   - a plan that takes more than `distrust` longer than its profile says, three of its steps in a row, is
//   given up
//     for good, and the plans left over are chosen from anew.
// Where one plan alone is expected to do as well, it stays with that.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "energy/clocks/clock_plans.h"

namespace moebius::energy::clocks {

enum class Mode { kOff, kFixed, kPerPhase, kSlack, kOwn };
// "off", "fixed", "per-phase", "slack", "own"; UserError naming the nearest otherwise.
Mode mode_named(std::string_view name);
const char* mode_name(Mode mode);

struct GovernorOptions {
  Mode mode = Mode::kOwn;
  double epsilon = 0.03;
  double switch_seconds = 0.02;   // of a change between plans
  double most_switching = 0.001;  // share of time
  double longest_cycle_seconds = 600;
  double distrust = 0.1;
};

class Governor {
 public:
  Governor(PlanSpace space, const GovernorOptions& options);

  // For the next step.
  const Plan& plan() const { return space_.plans[chosen_]; }
  // The step took so long; the plan may be another one afterwards.
  void after_step(double seconds);
  // Step time at default clocks, where it is known better than from the profile.
  void set_base_seconds(double seconds);

  // Seconds that may still be lost; negative when the world was slower than the profile.
  double budget_seconds() const { return budget_; }
  int64_t num_changes() const { return changes_; }
  const std::vector<std::string>& bad_plans() const { return bad_; }
  // What it does, in words: "1200 MHz", or "1410 MHz and 1200 MHz in turns".
  std::string description() const;

 private:
  void choose();
  void give_up(size_t plan);
  void take(size_t plan);

  PlanSpace space_;
  GovernorOptions options_;
  double time_scale_ = 1;  // of the profile, to the base that was measured
  size_t chosen_ = 0, fast_ = 0;
  std::optional<size_t> slow_;                   // of a pair
  double budget_ = 0, high_ = 0, surprise_ = 1;  // of slow steps: measured over promised
  int64_t changes_ = 0, slow_steps_ = 0;
  std::vector<int64_t> late_;  // per plan: its last steps in a row that took too long
  std::vector<std::string> bad_;
};

}  // namespace moebius::energy::clocks
