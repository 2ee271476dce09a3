#include "energy/clocks/clock_table.h"

#include <algorithm>
#include <map>
#include <optional>

#include "base/concat.h"
#include "base/csv.h"
#include "base/error.h"

namespace moebius::energy::clocks {
namespace {

constexpr double kMostSeconds = 1e8, kMostJoules = 1e12, kMostKnob = 1e5;

// Tables in the order in which they first appear.
class Tables {
 public:
  ClockTable& of(const std::string& id) {
    const auto [place, is_new] = index_.emplace(id, tables_.size());
    if (is_new) tables_.emplace_back().id = id;
    return tables_[place->second];
  }
  std::vector<ClockTable> take() { return std::move(tables_); }

 private:
  std::map<std::string, size_t> index_;
  std::vector<ClockTable> tables_;
};

PhaseCurve& phase_of(ClockTable& table, const std::string& phase, int stage) {
  for (PhaseCurve& curve : table.phases)
    if (curve.phase == phase && curve.stage == stage) return curve;
  PhaseCurve& curve = table.phases.emplace_back();
  curve.phase = phase;
  curve.stage = stage;
  return curve;
}

void add_setting(const CsvTable& csv, size_t knob_column, PhaseCurve& curve, const Setting& setting) {
  for (const Setting& other : curve.settings)
    if (other.knob == setting.knob) csv.refuse(knob_column, "appears twice for the same phase; keep one row");
  curve.settings.push_back(setting);
}

void read_profile(CsvTable& csv, Tables& tables) {
  const size_t gpu = csv.column("gpu"), phase = csv.column("phase"), clock = csv.column("clock_mhz"),
               time = csv.column("time_s"), energy = csv.column("energy_j");
  const auto switching = csv.find_column("switch_s"), slack = csv.find_column("slack_s"),
             wait = csv.find_column("wait_w"), stage = csv.find_column("stage");
  while (csv.next()) {
    ClockTable& table = tables.of(std::string(csv.text(gpu)));
    table.gpu = table.id;
    table.knob = "MHz";
    table.pipelined = stage.has_value();
    const int of_stage = stage ? static_cast<int>(csv.whole(*stage, 0, 1023)) : 0;
    PhaseCurve& curve = phase_of(table, std::string(csv.text(phase)), of_stage);
    add_setting(csv, clock, curve,
                {csv.number(clock, 1, kMostKnob), csv.number(time, 1e-9, kMostSeconds),
                 csv.number(energy, 0, kMostJoules)});
    if (switching) table.switch_seconds = std::max(table.switch_seconds, csv.number(*switching, 0, 60));
    if (slack) curve.slack_seconds = csv.number(*slack, 0, kMostSeconds);
    if (wait) curve.wait_watts = csv.number(*wait, 0, 1e5);
  }
}

void read_limits(CsvTable& csv, Tables& tables, const std::vector<std::string>& key, const char* time_name,
                 const char* energy_name) {
  std::vector<size_t> columns;
  for (const std::string& name : key) columns.push_back(csv.column(name));
  const size_t limit = csv.column("power_limit_w"), time = csv.column(time_name),
               energy = csv.column(energy_name);
  while (csv.next()) {
    std::string id;
    for (const size_t column : columns) id += concat(id.empty() ? "" : " ", csv.text(column));
    ClockTable& table = tables.of(id);
    table.gpu = std::string(csv.text(columns.front()));
    table.knob = "W";
    add_setting(csv, limit, phase_of(table, "step", 0),
                {csv.number(limit, 1, kMostKnob), csv.number(time, 1e-9, kMostSeconds),
                 csv.number(energy, 1e-9, kMostJoules)});
  }
}

const std::vector<std::string> kPlanKey = {"model", "cp", "tp", "mbs", "seq", "method"};

std::string plan_key(const CsvTable& csv, const std::vector<size_t>& columns) {
  std::string id;
  for (size_t i = 0; i < columns.size(); ++i)
    id +=
        concat(i == 0 ? "" : " ", i == 0 || i + 1 == columns.size() ? "" : kPlanKey[i], csv.text(columns[i]));
  return id;
}

// (table, plan) -> changes of clock in a step, around its end, of the stage that changes most.
std::map<std::pair<std::string, std::string>, int64_t> read_switches(const std::filesystem::path& file) {
  CsvTable csv(file, "operations");
  std::vector<size_t> key;
  for (const std::string& name : kPlanKey) key.push_back(csv.column(name));
  const size_t plan = csv.column("plan_index"), stage = csv.column("stage"), clock = csv.column("freq_mhz");
  std::map<std::pair<std::string, std::string>, std::map<int64_t, std::vector<double>>> clocks;
  while (csv.next())
    clocks[{plan_key(csv, key), std::string(csv.text(plan))}][csv.whole(stage, 0, 1023)].push_back(
        csv.number(clock, 1, kMostKnob));
  std::map<std::pair<std::string, std::string>, int64_t> switches;
  for (const auto& [id, stages] : clocks) {
    int64_t most = 0;
    for (const auto& [number, sequence] : stages) {
      int64_t changes = sequence.front() != sequence.back();
      for (size_t i = 1; i < sequence.size(); ++i) changes += sequence[i] != sequence[i - 1];
      most = std::max(most, changes);
    }
    switches[id] = most;
  }
  return switches;
}

void read_plans(CsvTable& csv, Tables& tables) {
  std::filesystem::path operations = csv.file().parent_path() / "kareus_ops.csv.gz";
  if (!std::filesystem::exists(operations)) operations = csv.file().parent_path() / "kareus_ops.csv";
  if (!std::filesystem::exists(operations))
    throw_user_error(csv.name(), ": the operations of these plans are missing (", operations.string(),
                     "); without them nobody knows how often a plan changes the clock");
  const auto switches = read_switches(operations);
  std::vector<size_t> key;
  for (const std::string& name : kPlanKey) key.push_back(csv.column(name));
  const size_t plan = csv.column("plan_index"), time = csv.column("iteration_time_s"),
               energy = csv.column("energy_j");
  while (csv.next()) {
    const std::string id = plan_key(csv, key);
    const auto found = switches.find({id, std::string(csv.text(plan))});
    if (found == switches.end()) csv.refuse(plan, concat("has no operations in ", operations.string()));
    ClockTable& table = tables.of(id);
    table.gpu = "A100-SXM4-40GB";
    table.knob = "plan";
    table.plans.push_back({std::string(csv.text(plan)), csv.number(time, 1e-9, kMostSeconds),
                           csv.number(energy, 1e-9, kMostJoules), found->second});
  }
}

}  // namespace

std::vector<ClockTable> read_clock_tables(const std::filesystem::path& file) {
  CsvTable csv(file, "clock table");
  Tables tables;
  if (csv.find_column("clock_mhz")) {
    read_profile(csv, tables);
  } else if (csv.find_column("plan_index")) {
    read_plans(csv, tables);
  } else if (csv.find_column("time_per_epoch_s")) {
    read_limits(csv, tables, {"gpu", "dataset", "network", "batch_size", "optimizer"}, "time_per_epoch_s",
                "energy_per_epoch_j");
  } else if (csv.find_column("elapsed_s")) {
    read_limits(csv, tables, {"gpu", "network", "gpu_index", "gpus_in_run"}, "elapsed_s", "energy_j");
  } else {
    throw_user_error(
        csv.name(),
        ": has none of the forms of a clock table (a profile with clock_mhz, plans with plan_index, "
        "or power limits with time_per_epoch_s or elapsed_s); see docs/energy.md");
  }
  std::vector<ClockTable> result = tables.take();
  if (result.empty()) throw_user_error(csv.name(), ": holds no rows");
  for (ClockTable& table : result) {
    for (PhaseCurve& curve : table.phases)
      std::sort(curve.settings.begin(), curve.settings.end(),
                [](const Setting& a, const Setting& b) { return a.knob < b.knob; });
    std::sort(table.plans.begin(), table.plans.end(),
              [](const RecordedPlan& a, const RecordedPlan& b) { return a.seconds < b.seconds; });
  }
  return result;
}

}  // namespace moebius::energy::clocks
