#include "cli/energy_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"

namespace moebius::cli {
namespace {

using nlohmann::json;

void add_distinct(std::vector<std::string>& list, const std::string& text) {
  if (!text.empty() && std::find(list.begin(), list.end(), text) == list.end()) list.push_back(text);
}

energy::PerPhase phases_of(const json& part, const char* key) {
  energy::PerPhase values{};
  const json object = part.value(key, json::object());
  for (size_t i = 0; i < energy::kNumPhases; ++i) values[i] = object.value(energy::kPhaseNames[i], 0.0);
  return values;
}

// Adds what one process counted.
void add_part(std::optional<EnergyPart>& sum, const json& line, const char* name, bool first) {
  const auto found = line.find(name);
  if (found == line.end()) return;
  const json& part = *found;
  const bool fresh = !sum;
  if (fresh) sum.emplace();
  const energy::PerPhase joules = phases_of(part, "phases_joules"),
                         seconds = phases_of(part, "phases_seconds");
  for (size_t i = 0; i < energy::kNumPhases; ++i) {
    sum->joules[i] += joules[i];
    sum->seconds[i] += seconds[i];
  }
  sum->total_joules += part.value("joules", 0.0);
  sum->estimated = sum->estimated || part.value("estimated", false);
  add_distinct(sum->methods, part.value("method", ""));
  const auto add = [&](std::optional<double>& value, const char* key) {
    if (!part.contains(key)) {
      value.reset();
    } else if (fresh && first) {
      value = part[key].get<double>();
    } else if (value) {
      *value += part[key].get<double>();
    }
  };
  add(sum->counter_joules, "counter_joules");
  add(sum->grams, "carbon_grams");
}

std::vector<json> lines_of(const std::filesystem::path& file) {
  std::istringstream text(read_file(file));
  std::vector<json> lines;
  int64_t number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_discarded() && text.eof()) break;  // torn by a crash
    if (!object.is_object() || !object.contains("session"))
      throw_user_error(
          file.string(), ", line ", number,
          ": is not a line of energy.jsonl; the run wrote something else there, or it was edited");
    lines.push_back(std::move(object));
  }
  return lines;
}

// What was spent between two lines of a session.
EnergyReport::Stretch stretch_of(const json* before, const json& line, const char* name, double offset) {
  EnergyReport::Stretch stretch;
  const bool had = before != nullptr && before->contains(name);
  stretch.begin_seconds = offset + (before != nullptr ? before->value("seconds", 0.0) : 0);
  stretch.end_seconds = offset + line.value("seconds", 0.0);
  const double length = stretch.end_seconds - stretch.begin_seconds;
  if (length <= 0) return stretch;
  const energy::PerPhase now = phases_of(line[name], "phases_joules");
  const energy::PerPhase then = had ? phases_of((*before)[name], "phases_joules") : energy::PerPhase{};
  for (size_t i = 0; i < energy::kNumPhases; ++i) stretch.watts[i] = std::max(0.0, now[i] - then[i]) / length;
  return stretch;
}

}  // namespace

EnergyReport read_energy_report(const std::filesystem::path& run_dir) {
  if (!std::filesystem::exists(run_dir / "config.toml"))
    throw_user_error("'", run_dir.string(), "' is not a run folder (no config.toml in it)");
  const std::filesystem::path file = run_dir / "energy.jsonl";
  if (!std::filesystem::exists(file)) {
    std::string why = "no sensor was readable";
    if (std::filesystem::exists(run_dir / "summary.json")) {
      const json summary = json::parse(read_file(run_dir / "summary.json"), nullptr, false);
      if (summary.is_object()) why = summary.value("energy_method", why);
    }
    throw_user_error("the run ", run_dir.string(), " has no energy.jsonl: ", why,
                     ". `moebius doctor` tells how to get readings; on a CPU without counters "
                     "energy.cpu_watts_per_core gives an estimate");
  }
  const std::vector<json> lines = lines_of(file);
  if (lines.empty()) throw_user_error(file.string(), " is empty; nothing was settled before the run ended");
  EnergyReport report;
  const bool any_gpu =
      std::any_of(lines.begin(), lines.end(), [](const json& line) { return line.contains("gpu"); });
  const char* shown = any_gpu ? "gpu" : "host";
  double offset = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    const json& line = lines[i];
    const bool begins = i == 0 || lines[i - 1]["session"] != line["session"];
    const bool ends = i + 1 == lines.size() || lines[i + 1]["session"] != line["session"];
    if (line.contains(shown))
      report.stretches.push_back(stretch_of(begins ? nullptr : &lines[i - 1], line, shown, offset));
    if (!ends) continue;
    add_part(report.gpu, line, "gpu", report.sessions == 0);
    add_part(report.host, line, "host", report.sessions == 0);
    add_distinct(report.grids, line.value("grid", ""));
    ++report.sessions;
    report.steps += line.value("steps", int64_t{0});
    report.tokens += line.value("tokens", int64_t{0});
    report.seconds += line.value("seconds", 0.0);
    offset += line.value("seconds", 0.0);
  }
  if (!report.gpu && !report.host) throw_user_error(file.string(), " holds no joules");
  return report;
}

}  // namespace moebius::cli
