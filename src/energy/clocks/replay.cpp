#include "energy/clocks/replay.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/concat.h"
#include "base/distance.h"
#include "base/error.h"
#include "energy/clocks/governor.h"

namespace moebius::energy::clocks {
namespace {

constexpr double kArticleComputeMhz = 1500, kArticleOtherMhz = 800;
// Tables of whole epochs or windows do not say how many steps they had; a step of about this long is taken.
constexpr double kStepSeconds = 1;
constexpr double kFurthestSlowdown = 0.5;  // plans beyond are of no use to any allowance

// The table for one step of about kStepSeconds.
ClockTable per_step(const ClockTable& table) {
  ClockTable result = table;
  if (table.phases.size() != 1 || table.knob != "W") return result;
  const double pieces = std::max(1.0, std::round(table.phases[0].settings.back().seconds / kStepSeconds));
  for (Setting& setting : result.phases[0].settings) {
    setting.seconds /= pieces;
    setting.joules /= pieces;
  }
  return result;
}

bool computes(const std::string& phase) {
  return phase == "forward" || phase == "backward" || phase == "step";
}

// One plan for the whole run.
void run_plan(const Plan& plan, ReplayResult& result) {
  result.seconds = plan.seconds * static_cast<double>(result.steps);
  result.joules = plan.joules * static_cast<double>(result.steps);
  result.switches_per_step = plan.switches;
  result.what = plan.name;
}

void refuse(ReplayResult& result, const std::string& why) {
  result.available = false;
  result.why = why;
}

void run_article(const ClockTable& table, const ReplayOptions& options, ReplayResult& result) {
  if (table.knob != "MHz" || table.pipelined)
    return refuse(result,
                  concat("the table's knob is a ", table.knob == "W" ? "power limit" : "pipeline's plan",
                         ", not a clock per phase"));
  std::vector<size_t> settings;
  for (const PhaseCurve& curve : table.phases)
    settings.push_back(nearest_setting(curve, computes(curve.phase) ? kArticleComputeMhz : kArticleOtherMhz));
  run_plan(evaluate(table, settings, options.switch_seconds), result);
}

void run_governor(const PlanSpace& space, Mode mode, const ReplayOptions& options, ReplayResult& result) {
  GovernorOptions governed;
  governed.mode = mode;
  governed.epsilon = options.epsilon;
  governed.switch_seconds = options.switch_seconds;
  governed.longest_cycle_seconds = options.run_seconds / 6;
  Governor governor(space, governed);
  std::map<std::string, std::pair<int64_t, int64_t>> runs;  // plan: (steps, switches in it)
  std::string last;
  for (int64_t step = 0; step < result.steps; ++step) {
    const Plan& plan = governor.plan();
    double seconds = plan.seconds, joules = plan.joules;
    if (step > 0 && plan.name != last) {
      seconds += options.switch_seconds;
      joules += options.switch_seconds * plan.joules / plan.seconds;
    }
    last = plan.name;
    ++runs[plan.name].first;
    runs[plan.name].second = plan.switches;
    result.seconds += seconds;
    result.joules += joules;
    governor.after_step(seconds);
  }
  int64_t most = 0;
  for (const auto& [name, run] : runs) {
    if (run.first < most) continue;
    most = run.first;
    result.switches_per_step = run.second;
  }
  result.changes = governor.num_changes();
  result.what = governor.description();
}

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names = {"default", "fixed", "per-phase", "slack", "own", "article"};
  return names;
}

std::string canonical_policy(std::string_view name) {
  std::string lower(name);
  std::replace(lower.begin(), lower.end(), '_', '-');
  for (const std::string& each : policy_names())
    if (lower == each) return each;
  const auto close = nearest_name(lower, policy_names());
  throw_user_error("policy '", name, "' is unknown; ", close ? concat("did you mean ", *close, "? ") : "",
                   "There are default, fixed, per-phase, slack, own and article");
}

ReplayResult replay(const ClockTable& recorded, const std::string& policy, const ReplayOptions& options) {
  const ClockTable table = per_step(recorded);
  const PlanSpace space = make_plans(table, options.switch_seconds,
                                     std::max(kFurthestSlowdown, 2 * options.epsilon), options.micro_batches);
  ReplayResult result;
  result.policy = policy;
  result.steps =
      std::max<int64_t>(1, static_cast<int64_t>(std::llround(options.run_seconds / space.base.seconds)));
  result.base_seconds = space.base.seconds * static_cast<double>(result.steps);
  result.base_joules = space.base.joules * static_cast<double>(result.steps);
  if (policy == "default") {
    run_plan(space.base, result);
  } else if (policy == "article") {
    run_article(table, options, result);
  } else if (policy == "fixed" && !space.has_uniform) {
    refuse(result, "no plan with one clock for everything was recorded");
  } else {
    run_governor(space, mode_named(policy), options, result);
  }
  return result;
}

}  // namespace moebius::energy::clocks
