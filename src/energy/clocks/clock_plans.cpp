#include "energy/clocks/clock_plans.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "base/check.h"
#include "base/concat.h"
#include "energy/clocks/pipeline.h"

namespace moebius::energy::clocks {
namespace {

constexpr double kTimeGrain = 1e-5;  // of the base: labels closer than this are one

std::string knob_text(double knob) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", knob);
  return text;
}

// The part of a plan that the first phases make up.
struct Label {
  double seconds = 0, joules = 0;
  std::vector<size_t> settings;
};
using Labels = std::map<int64_t, Label>;  // by time in grains; energy falls from one to the next

void keep(Labels& labels, Label label, double grain) {
  const auto key = static_cast<int64_t>(std::floor(label.seconds / grain));
  auto at = labels.upper_bound(key);
  if (at != labels.begin() && std::prev(at)->second.joules <= label.joules) return;  // beaten
  labels.insert_or_assign(key, std::move(label));
  for (at = labels.upper_bound(key); at != labels.end() && at->second.joules >= labels.at(key).joules;)
    at = labels.erase(at);
}

std::string name_of(const ClockTable& table, const std::vector<size_t>& settings) {
  std::string name;
  for (size_t i = 0; i < settings.size(); ++i) {
    if (table.phases.size() > 1) name += concat(i == 0 ? "" : ", ", table.phases[i].phase, " ");
    name += knob_text(table.phases[i].settings[settings[i]].knob);
  }
  return name + " " + table.knob;
}

double knob_of(const ClockTable& table, size_t phase, size_t setting) {
  return table.phases[phase].settings[setting].knob;
}

struct Change {
  double seconds = 0, joules = 0;
};

// What is left of a phase's slack under a setting.
double spare_seconds(const PhaseCurve& curve, size_t setting) {
  if (curve.slack_seconds <= 0) return 0;
  return std::max(0.0, curve.settings.back().seconds + curve.slack_seconds - curve.settings[setting].seconds);
}

// The change of clock between two phases that follow each other; nothing when they share the clock. A wait
// takes it in as far as it goes, half of it the change before and half the one behind.
Change change_between(const ClockTable& table, size_t before, size_t from, size_t phase, size_t to,
                      double switch_seconds) {
  if (before == phase || knob_of(table, before, from) == knob_of(table, phase, to)) return {};
  const Setting& into = table.phases[phase].settings[to];
  const double early = std::min(switch_seconds, spare_seconds(table.phases[before], from) / 2);
  const double late = std::min(switch_seconds - early, spare_seconds(table.phases[phase], to) / 2);
  return {switch_seconds - early - late, switch_seconds * into.joules / into.seconds -
                                             early * table.phases[before].wait_watts -
                                             late * table.phases[phase].wait_watts};
}

// All undominated plans of a step whose phases follow each other, by dynamic programming over (setting of the
// first phase, setting of the last one so far).
std::vector<Plan> sequential_plans(const ClockTable& table, double switch_seconds, double longest,
                                   double grain) {
  std::vector<Plan> plans;
  Labels all;
  const size_t num_phases = table.phases.size();
  for (size_t first = 0; first < table.phases[0].settings.size(); ++first) {
    std::vector<Labels> states(table.phases[0].settings.size());
    const Setting begin = effective(table.phases[0], first);
    keep(states[first], {begin.seconds, begin.joules, {first}}, grain);
    for (size_t p = 1; p < num_phases; ++p) {
      std::vector<Labels> next(table.phases[p].settings.size());
      for (size_t from = 0; from < states.size(); ++from) {
        for (size_t to = 0; to < next.size(); ++to) {
          const Change change = change_between(table, p - 1, from, p, to, switch_seconds);
          const Setting own = effective(table.phases[p], to);
          for (const auto& [time, label] : states[from]) {
            Label longer{label.seconds + own.seconds + change.seconds,
                         label.joules + own.joules + change.joules, label.settings};
            if (longer.seconds > longest) break;
            longer.settings.push_back(to);
            keep(next[to], std::move(longer), grain);
          }
        }
      }
      states = std::move(next);
    }
    for (size_t last = 0; last < states.size(); ++last) {
      const Change change = change_between(table, num_phases - 1, last, 0, first, switch_seconds);
      for (auto& [time, label] : states[last]) {
        label.seconds += change.seconds;
        label.joules += change.joules;
        if (label.seconds <= longest) keep(all, std::move(label), grain);
      }
    }
  }
  for (const auto& [time, label] : all) plans.push_back(evaluate(table, label.settings, switch_seconds));
  return plans;
}

// One knob value for all phases, wherever every phase was recorded under it.
std::vector<Plan> uniform_plans(const ClockTable& table) {
  std::vector<Plan> plans;
  for (const Setting& setting : table.phases[0].settings) {
    std::vector<size_t> settings;
    for (const PhaseCurve& curve : table.phases) {
      const size_t i = nearest_setting(curve, setting.knob);
      if (curve.settings[i].knob == setting.knob) settings.push_back(i);
    }
    if (settings.size() == table.phases.size()) plans.push_back(evaluate(table, settings, 0));
  }
  return plans;
}

PlanSpace recorded_space(const ClockTable& table, double switch_seconds) {
  PlanSpace space;
  for (const RecordedPlan& recorded : table.plans) {
    const double stall = static_cast<double>(recorded.switches) * switch_seconds;
    const double watts = recorded.joules / recorded.seconds;
    space.plans.push_back({concat("plan ", recorded.name),
                           {},
                           recorded.seconds + stall,
                           recorded.joules + stall * watts,
                           recorded.switches,
                           recorded.switches == 0});
    space.has_uniform = space.has_uniform || recorded.switches == 0;
  }
  const RecordedPlan& fastest = table.plans.front();
  space.base = {concat("plan ", fastest.name, ", uncharged"), {}, fastest.seconds, fastest.joules, 0, false};
  return space;
}

}  // namespace

size_t nearest_setting(const PhaseCurve& curve, double knob) {
  size_t best = 0;
  for (size_t i = 1; i < curve.settings.size(); ++i)
    if (std::fabs(curve.settings[i].knob - knob) < std::fabs(curve.settings[best].knob - knob)) best = i;
  return best;
}

Setting effective(const PhaseCurve& curve, size_t setting) {
  Setting result = curve.settings[setting];
  if (curve.slack_seconds <= 0) return result;
  // Without a stretch the whole slack is waited out after the phase.
  const double floor = curve.settings.back().seconds + curve.slack_seconds;
  if (result.seconds < floor) {
    result.joules += (floor - result.seconds) * curve.wait_watts;
    result.seconds = floor;
  }
  return result;
}

Plan evaluate(const ClockTable& table, const std::vector<size_t>& settings, double switch_seconds) {
  MOEBIUS_CHECK_EQ(settings.size(), table.phases.size());
  Plan plan;
  plan.settings = settings;
  plan.uniform = true;
  for (size_t p = 0; p < settings.size(); ++p) {
    const Setting own = effective(table.phases[p], settings[p]);
    plan.seconds += own.seconds;
    plan.joules += own.joules;
    const size_t before = (p + settings.size() - 1) % settings.size();
    if (knob_of(table, before, settings[before]) == knob_of(table, p, settings[p])) continue;
    plan.uniform = false;
    ++plan.switches;
    const Change change = change_between(table, before, settings[before], p, settings[p], switch_seconds);
    plan.seconds += change.seconds;
    plan.joules += change.joules;
  }
  if (plan.uniform) {
    plan.name = concat(knob_text(knob_of(table, 0, settings[0])), " ", table.knob);
  } else {
    plan.name = name_of(table, settings);
  }
  return plan;
}

PlanSpace make_plans(const ClockTable& table, double switch_seconds, double most_slowdown,
                     int64_t micro_batches) {
  PlanSpace space;
  if (!table.plans.empty()) {
    space = recorded_space(table, switch_seconds);
  } else if (table.pipelined) {
    space = pipeline_space(table, switch_seconds, micro_batches);
  } else {
    std::vector<size_t> defaults;
    for (const PhaseCurve& curve : table.phases) defaults.push_back(curve.settings.size() - 1);
    space.base = evaluate(table, defaults, 0);
    const double longest = space.base.seconds * (1 + most_slowdown);
    space.plans = uniform_plans(table);
    space.has_uniform = !space.plans.empty();
    if (table.phases.size() > 1)
      for (Plan& plan : sequential_plans(table, switch_seconds, longest, kTimeGrain * space.base.seconds))
        space.plans.push_back(std::move(plan));
  }
  space.wait_watts = space.base.joules / space.base.seconds;
  std::erase_if(space.plans,
                [&](const Plan& plan) { return plan.seconds > space.base.seconds * (1 + most_slowdown); });
  std::sort(space.plans.begin(), space.plans.end(), [](const Plan& a, const Plan& b) {
    return a.seconds != b.seconds ? a.seconds < b.seconds : a.joules < b.joules;
  });
  return space;
}

std::optional<Plan> best_plan(const PlanSpace& space, double epsilon, bool uniform_only) {
  std::optional<Plan> best;
  const double limit = space.base.seconds * (1 + epsilon) * (1 + 1e-12);
  for (const Plan& plan : space.plans) {
    if (plan.seconds > limit || (uniform_only && !plan.uniform)) continue;
    if (!best || plan.joules < best->joules) best = plan;
  }
  return best;
}

std::vector<Plan> convex_hull(const PlanSpace& space) {
  // The base, then the plans; those that are no faster and no thriftier than the base fall away.
  std::vector<Plan> points{space.base};
  points.insert(points.end(), space.plans.begin(), space.plans.end());
  std::sort(points.begin(), points.end(), [](const Plan& a, const Plan& b) {
    return a.seconds != b.seconds ? a.seconds < b.seconds : a.joules < b.joules;
  });
  std::vector<Plan> hull;
  for (const Plan& point : points) {
    if (!hull.empty() && point.joules >= hull.back().joules) continue;
    while (hull.size() > 1) {
      const Plan &a = hull[hull.size() - 2], &b = hull.back();
      const double along = (b.joules - a.joules) * (point.seconds - a.seconds);
      const double across = (point.joules - a.joules) * (b.seconds - a.seconds);
      if (along < across) break;
      hull.pop_back();
    }
    hull.push_back(point);
  }
  return hull;
}

}  // namespace moebius::energy::clocks
