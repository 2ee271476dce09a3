// Plans: ways to run one step, each with its time and energy, switching charged. A policy of the governor is
// a choice among them.
//
// Charging: while a clock changes, the GPU is taken to stand still for the switching time and to draw the
// power of what it was about to run. (Real GPUs run on at the old clock; standing still is the dearer
// assumption.) A step whose phases change k times, around its end, takes k switching times longer, less what
// falls into waits.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "energy/clocks/clock_table.h"

namespace moebius::energy::clocks {

struct Plan {
  std::string name;              // "1200 MHz", "forward 1410, backward 1200", "plan 1773"
  std::vector<size_t> settings;  // index per phase; empty for recorded plans
  double seconds = 0, joules = 0;
  int64_t switches = 0;  // per step
  bool uniform = false;  // one knob value for the whole step
};

// Of one table under one switching time.
struct PlanSpace {
  Plan base;  // default clocks; for recorded plans the fastest one, without charge
  std::vector<Plan>
      plans;  // by rising time, none dominated among those that switch and none among uniform ones
  bool has_uniform = false;  // whether one clock for everything was recorded at all
  double wait_watts = 0;     // mean power of the base: what a change between plans costs per second
};

// Every plan that no other beats in both time and energy, up to `most_slowdown` (a share) slower than the
// base. Labels of equal time up to 1e-5 of the base are merged.
PlanSpace make_plans(const ClockTable& table, double switch_seconds, double most_slowdown,
                     int64_t micro_batches = 8);

// The plan with the least energy among those at most `epsilon` slower than the base. With `uniform_only`
// only plans of one clock. Nothing when none qualifies.
std::optional<Plan> best_plan(const PlanSpace& space, double epsilon, bool uniform_only);

// The lower convex hull of (time, energy) from the base on: between two neighbours, steps of one and steps of
// the other reach every time in between at the energy of the line.
std::vector<Plan> convex_hull(const PlanSpace& space);

// Setting whose knob is nearest; ties to the lower.
size_t nearest_setting(const PhaseCurve& curve, double knob);

// The energy and time of a phase under a setting, its slack used: a stretch into the slack costs no time, and
// what is left of the slack is waited out at its power.
Setting effective(const PhaseCurve& curve, size_t setting);

// The step at given settings.
Plan evaluate(const ClockTable& table, const std::vector<size_t>& settings, double switch_seconds);

}  // namespace moebius::energy::clocks
