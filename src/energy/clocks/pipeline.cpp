#include "energy/clocks/pipeline.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/concat.h"
#include "base/error.h"
#include "energy/clocks/min_cut.h"
#include "tune/pipeline_schedule.h"

namespace moebius::energy::clocks {
namespace {

constexpr int kWalkSteps = 250;  // from the thriftiest to the fastest plan

// A curve as durations and what they cost beyond waiting: the lower convex hull, by rising duration.
struct Tradeoff {
  struct Point {
    double seconds = 0, cost = 0;
  };
  std::vector<Point> points;

  // Joules per second shorter just below `seconds`; infinite at the shortest.
  double shorten(double seconds) const {
    for (size_t i = points.size(); i-- > 1;) {
      if (seconds > points[i - 1].seconds + kSlop)
        return (points[i - 1].cost - points[i].cost) / (points[i].seconds - points[i - 1].seconds);
    }
    return FlowGraph::kInfinite;
  }
  // Joules that a second longer gives back just above `seconds`; 0 at the longest.
  double lengthen(double seconds) const {
    for (size_t i = 1; i < points.size(); ++i) {
      if (seconds < points[i].seconds - kSlop)
        return (points[i - 1].cost - points[i].cost) / (points[i].seconds - points[i - 1].seconds);
    }
    return 0;
  }
  // How far the slope there holds.
  double shorten_by(double seconds) const {
    for (size_t i = points.size(); i-- > 0;)
      if (points[i].seconds < seconds - kSlop) return seconds - points[i].seconds;
    return 0;
  }
  double lengthen_by(double seconds) const {
    for (const Point& point : points)
      if (point.seconds > seconds + kSlop) return point.seconds - seconds;
    return std::numeric_limits<double>::infinity();
  }
  static constexpr double kSlop = 1e-12;
};

Tradeoff tradeoff_of(const PhaseCurve& curve) {
  std::vector<Tradeoff::Point> all;
  for (const Setting& setting : curve.settings)
    all.push_back({setting.seconds, setting.joules - curve.wait_watts * setting.seconds});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return a.seconds != b.seconds ? a.seconds < b.seconds : a.cost < b.cost;
  });
  Tradeoff result;
  auto& hull = result.points;
  for (const Tradeoff::Point& point : all) {
    if (!hull.empty() && point.cost >= hull.back().cost) continue;  // slower and no thriftier
    while (hull.size() > 1) {
      const auto &a = hull[hull.size() - 2], &b = hull.back();
      if ((b.cost - a.cost) * (point.seconds - a.seconds) < (point.cost - a.cost) * (b.seconds - a.seconds))
        break;
      hull.pop_back();
    }
    hull.push_back(point);
  }
  return result;
}

struct Times {
  std::vector<double> early, late;  // begin of each instruction
  double makespan = 0;
};

Times times_of(const Pipeline& pipeline, const std::vector<double>& durations) {
  Times times;
  times.early.assign(durations.size(), 0);
  for (const size_t i : pipeline.sequence) {
    for (const size_t b : pipeline.before[i])
      times.early[i] = std::max(times.early[i], times.early[b] + durations[b]);
    times.makespan = std::max(times.makespan, times.early[i] + durations[i]);
  }
  times.late.assign(durations.size(), 0);
  for (size_t i = 0; i < durations.size(); ++i) times.late[i] = times.makespan - durations[i];
  for (auto i = pipeline.sequence.rbegin(); i != pipeline.sequence.rend(); ++i)
    for (const size_t b : pipeline.before[*i])
      times.late[b] = std::min(times.late[b], times.late[*i] - durations[b]);
  return times;
}

// Shortens the step once; false when it is as short as it gets.
bool shorten(const Pipeline& pipeline, const std::vector<Tradeoff>& tradeoffs, double most,
             std::vector<double>& durations, bool gives_back = true) {
  const Times times = times_of(pipeline, durations);
  const double slop = 1e-9 * times.makespan;
  // Node 2i is the begin, 2i + 1 the end of instruction i; then source and sink.
  const size_t count = durations.size(), source = 2 * count, sink = source + 1;
  FlowGraph graph(2 * count + 2);
  const auto critical = [&](size_t i) { return times.late[i] - times.early[i] <= slop; };
  for (size_t i = 0; i < count; ++i) {
    if (!critical(i)) continue;
    const Tradeoff& tradeoff = tradeoffs[pipeline.instructions[i].curve];
    graph.add(2 * i, 2 * i + 1, gives_back ? tradeoff.lengthen(durations[i]) : 0,
              tradeoff.shorten(durations[i]));
    if (times.early[i] <= slop) graph.add(source, 2 * i, 0, FlowGraph::kInfinite);
    if (times.early[i] + durations[i] >= times.makespan - slop)
      graph.add(2 * i + 1, sink, 0, FlowGraph::kInfinite);
    for (const size_t b : pipeline.before[i])
      if (critical(b) && times.early[b] + durations[b] >= times.early[i] - slop)
        graph.add(2 * b + 1, 2 * i, 0, FlowGraph::kInfinite);
  }
  const std::vector<bool> near = graph.cut(source, sink);
  // Rounding may have left the optimum by a hair, and then no flow keeps all bounds: go on without giving
  // back.
  if (near.empty()) return gives_back && shorten(pipeline, tradeoffs, most, durations, false);
  double by = most;
  for (size_t i = 0; i < count; ++i) {
    // Not beyond the moment when something else becomes critical.
    if (!critical(i)) by = std::min(by, std::max(times.late[i] - times.early[i], 1e-6 * times.makespan));
    if (!critical(i) || near[2 * i] == near[2 * i + 1]) continue;
    if (!near[2 * i] && !gives_back) continue;
    const Tradeoff& tradeoff = tradeoffs[pipeline.instructions[i].curve];
    by = std::min(by, near[2 * i] ? tradeoff.shorten_by(durations[i]) : tradeoff.lengthen_by(durations[i]));
  }
  bool any = false;
  for (size_t i = 0; i < count; ++i) {
    if (!critical(i) || near[2 * i] == near[2 * i + 1]) continue;
    if (!near[2 * i] && !gives_back) continue;
    const auto& points = tradeoffs[pipeline.instructions[i].curve].points;
    durations[i] += near[2 * i] ? -by : by;
    durations[i] = std::clamp(durations[i], points.front().seconds, points.back().seconds);
    any = any || near[2 * i];
  }
  return any && by > 0;
}

// The thriftiest setting that takes no longer.
size_t setting_within(const PhaseCurve& curve, double seconds) {
  size_t best = curve.settings.size() - 1;
  for (size_t i = 0; i < curve.settings.size(); ++i) {
    const Setting& setting = curve.settings[i];
    if (setting.seconds > seconds * (1 + 1e-9)) continue;
    const auto cost = [&](const Setting& s) { return s.joules - curve.wait_watts * s.seconds; };
    if (curve.settings[best].seconds > seconds * (1 + 1e-9) || cost(setting) < cost(curve.settings[best]))
      best = i;
  }
  return best;
}

// What rounding to faster clocks left over: slower clocks wherever the step stays within `longest`, the
// greatest gain first.
void use_leftover(const ClockTable& table, const Pipeline& pipeline, double longest,
                  std::vector<size_t>& settings) {
  std::vector<double> durations(settings.size());
  for (size_t i = 0; i < settings.size(); ++i)
    durations[i] = table.phases[pipeline.instructions[i].curve].settings[settings[i]].seconds;
  const auto cost = [&](size_t i, size_t setting) {
    const PhaseCurve& curve = table.phases[pipeline.instructions[i].curve];
    return curve.settings[setting].joules - curve.wait_watts * curve.settings[setting].seconds;
  };
  std::vector<size_t> order(settings.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto gain = [&](size_t i) {
    return settings[i] > 0 ? cost(i, settings[i]) - cost(i, settings[i] - 1) : 0;
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return gain(a) > gain(b); });
  for (const size_t i : order) {
    const PhaseCurve& curve = table.phases[pipeline.instructions[i].curve];
    while (gain(i) > 0) {
      const double before = durations[i];
      durations[i] = curve.settings[settings[i] - 1].seconds;
      if (times_of(pipeline, durations).makespan > longest * (1 + 1e-9)) {
        durations[i] = before;
        break;
      }
      --settings[i];
    }
  }
}

}  // namespace

Pipeline make_pipeline(const ClockTable& table, int64_t micro_batches) {
  int num_stages = 0;
  for (const PhaseCurve& curve : table.phases) num_stages = std::max(num_stages, curve.stage + 1);
  Pipeline pipeline;
  pipeline.order.resize(static_cast<size_t>(num_stages));
  const auto curve_of = [&](int stage, const char* phase) {
    for (size_t i = 0; i < table.phases.size(); ++i)
      if (table.phases[i].stage == stage && table.phases[i].phase == phase) return i;
    throw_user_error("the clock table of ", table.gpu, " has no phase '", phase, "' for stage ", stage,
                     "; a pipeline needs forward and backward for each of its ", num_stages, " stages");
  };
  const tune::PipelineSchedule schedule =
      tune::make_schedule(tune::PipelineKind::one_f_one_b, num_stages, 1, micro_batches);
  for (int stage = 0; stage < num_stages; ++stage) {
    const size_t forward = curve_of(stage, "forward"), backward = curve_of(stage, "backward");
    for (const tune::PipelineTask& task : schedule.tasks[static_cast<size_t>(stage)]) {
      const bool is_backward = task.pass == tune::PipelinePass::backward;
      pipeline.order[static_cast<size_t>(stage)].push_back(pipeline.instructions.size());
      pipeline.instructions.push_back(
          {is_backward ? backward : forward, stage, task.micro_batch, is_backward});
    }
  }
  pipeline.before.resize(pipeline.instructions.size());
  for (const auto& order : pipeline.order)
    for (size_t i = 1; i < order.size(); ++i) pipeline.before[order[i]].push_back(order[i - 1]);
  for (const tune::PipelineTransfer& transfer : schedule.transfers)
    pipeline.before[pipeline.order[static_cast<size_t>(transfer.to)][transfer.before]].push_back(
        pipeline.order[static_cast<size_t>(transfer.from)][transfer.after]);
  // Depth-first order of what must come first.
  std::vector<bool> placed(pipeline.instructions.size());
  const auto place = [&](const auto& self, size_t i) -> void {
    if (placed[i]) return;
    placed[i] = true;
    for (const size_t b : pipeline.before[i]) self(self, b);
    pipeline.sequence.push_back(i);
  };
  for (size_t i = 0; i < pipeline.instructions.size(); ++i) place(place, i);
  return pipeline;
}

Plan evaluate_pipeline(const ClockTable& table, const Pipeline& pipeline, const std::vector<size_t>& settings,
                       double switch_seconds) {
  Plan plan;
  plan.settings = settings;
  std::vector<double> durations(settings.size());
  double first = -1;
  plan.uniform = true;
  const auto setting_of = [&](size_t i) -> const Setting& {
    return table.phases[pipeline.instructions[i].curve].settings[settings[i]];
  };
  for (const auto& order : pipeline.order) {
    int64_t changes = 0;
    for (size_t k = 0; k < order.size(); ++k) {
      const size_t i = order[k];
      const Setting& own = setting_of(i);
      durations[i] = own.seconds;
      plan.joules += own.joules - table.phases[pipeline.instructions[i].curve].wait_watts * own.seconds;
      if (first < 0) first = own.knob;
      plan.uniform = plan.uniform && own.knob == first;
      if (own.knob == setting_of(order[(k + order.size() - 1) % order.size()]).knob) continue;
      ++changes;
      durations[i] += switch_seconds;
      plan.joules += switch_seconds *
                     (own.joules / own.seconds - table.phases[pipeline.instructions[i].curve].wait_watts);
    }
    plan.switches = std::max(plan.switches, changes);
  }
  plan.seconds = times_of(pipeline, durations).makespan;
  for (const auto& order : pipeline.order)
    plan.joules += plan.seconds * table.phases[pipeline.instructions[order.front()].curve].wait_watts;
  return plan;
}

PlanSpace pipeline_space(const ClockTable& table, double switch_seconds, int64_t micro_batches) {
  const Pipeline pipeline = make_pipeline(table, micro_batches);
  std::vector<Tradeoff> tradeoffs;
  for (const PhaseCurve& curve : table.phases) tradeoffs.push_back(tradeoff_of(curve));
  const auto evaluated = [&](const std::vector<size_t>& settings, double switching, const std::string& name) {
    Plan plan = evaluate_pipeline(table, pipeline, settings, switching);
    plan.name = name;
    return plan;
  };
  const auto settings_by = [&](const auto& choose) {
    std::vector<size_t> settings;
    for (size_t i = 0; i < pipeline.instructions.size(); ++i)
      settings.push_back(choose(i, table.phases[pipeline.instructions[i].curve]));
    return settings;
  };
  PlanSpace space;
  space.base = evaluated(settings_by([](size_t, const PhaseCurve& c) { return c.settings.size() - 1; }), 0,
                         "highest clocks");
  space.has_uniform = true;

  std::vector<double> durations, shortest;
  for (const Instruction& each : pipeline.instructions) {
    durations.push_back(tradeoffs[each.curve].points.back().seconds);
    shortest.push_back(tradeoffs[each.curve].points.front().seconds);
  }
  const double range = times_of(pipeline, durations).makespan - times_of(pipeline, shortest).makespan;
  for (int step = 0; step < 8 * kWalkSteps; ++step) {
    auto settings =
        settings_by([&](size_t i, const PhaseCurve& c) { return setting_within(c, durations[i]); });
    use_leftover(table, pipeline, times_of(pipeline, durations).makespan, settings);
    space.plans.push_back(evaluated(settings, switch_seconds, concat("cut ", step)));
    if (range <= 0 || !shorten(pipeline, tradeoffs, range / kWalkSteps, durations)) break;
  }
  // One clock, or one clock per stage where two stages make that few.
  const size_t num_stages = pipeline.order.size();
  for (const Setting& a : table.phases.front().settings) {
    for (const Setting& b : table.phases.front().settings) {
      if (num_stages != 2 && a.knob != b.knob) continue;
      const auto settings = settings_by([&](size_t i, const PhaseCurve& c) {
        return nearest_setting(c, pipeline.instructions[i].stage % 2 == 0 ? a.knob : b.knob);
      });
      space.plans.push_back(
          evaluated(settings, switch_seconds,
                    a.knob == b.knob ? concat(a.knob, " MHz") : concat(a.knob, " and ", b.knob, " MHz")));
    }
  }
  return space;
}

}  // namespace moebius::energy::clocks
