#include "train/energy_journal.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/concat.h"
#include "base/units.h"

namespace moebius::train {
namespace {

using energy::RunLedger;

// energy.jsonl gets a line a second at first, and then one per so much of the time gone: a day makes some
// hundred lines.
constexpr double kFirstInterval = 1;
constexpr double kLaterShare = 0.01;

energy::RunLedgerOptions ledger_options(const EnergyJournal::Context& context) {
  energy::RunLedgerOptions options;
  if (context.device.is_cuda()) options.pci_bus_id = context.pci_bus_id;
  options.sources.read = context.config.sensors;
  options.cpu_watts_per_core = context.config.sensors ? context.config.cpu_watts_per_core : 0;
  options.grid = grid_of(context.config);
  options.sample_seconds = context.config.sample_ms / 1e3;
  return options;
}

nlohmann::ordered_json phases_json(const energy::PerPhase& values) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (size_t i = 0; i < energy::kNumPhases; ++i)
    if (values[i] != 0) json[energy::kPhaseNames[i]] = values[i];
  return json;
}

nlohmann::ordered_json part_json(const RunLedger::Part& part) {
  nlohmann::ordered_json json;
  json["joules"] = part.total_joules;
  json["estimated"] = part.estimated;
  json["phases_joules"] = phases_json(part.joules);
  json["phases_seconds"] = phases_json(part.seconds);
  if (part.counter_joules) json["counter_joules"] = *part.counter_joules;
  if (part.sampled_joules) json["sampled_joules"] = *part.sampled_joules;
  if (part.grams) json["carbon_grams"] = *part.grams;
  json["method"] = part.method;
  return json;
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

}  // namespace

energy::GridIntensity grid_of(const config::EnergyConfig& config) {
  energy::GridOptions options;
  options.constant_g_per_kwh = config.grid_intensity;
  options.trace = config.grid_trace;
  options.scope = config.grid_scope;
  options.kind = config.grid_kind;
  options.source = config.grid_source;
  options.replay_from = config.grid_from;
  return {options, system_clock().unix_seconds()};
}

EnergyJournal::EnergyJournal(const Context& context, telemetry::TrainMetrics& metrics)
    : context_(context),
      metrics_(metrics),
      ledger_(ledger_options(context)),
      timer_(context.device, system_clock(), context.config.sensors),
      session_(system_clock().wall_iso()) {}

void EnergyJournal::step(int64_t step, int64_t num_tokens, bool waited) {
  step_ = step;
  ++steps_;
  tokens_ += num_tokens;
  for (const energy::PhaseSpan& span : timer_.take(waited)) ledger_.add(span);
  ledger_.settle();
  last_ = ledger_.totals();
  update_metrics(last_);
  if (last_.seconds - written_seconds_ >= std::max(kFirstInterval, kLaterShare * last_.seconds)) write_line();
}

std::optional<double> EnergyJournal::device_joules() const {
  const energy::EnergyCounter::Reading reading = ledger_.recent_joules();
  return context_.device.is_cuda() ? reading.device_joules : reading.host_joules;
}

void EnergyJournal::update_metrics(const RunLedger::Totals& totals) {
  const auto phases = [&](const char* part, const std::optional<RunLedger::Part>& values) {
    if (!values || values->estimated) return;
    for (size_t i = 0; i < energy::kNumPhases; ++i) {
      if (values->joules[i] > 0)
        metrics_.phase_energy_joules(part, energy::kPhaseNames[i]).advance_to(values->joules[i]);
    }
    if (values->grams) {
      metrics_.carbon_grams(part, ledger_.grid().zone(), ledger_.grid().signal()).advance_to(*values->grams);
    }
  };
  phases("gpu", totals.gpu);
  phases("host", totals.host);
  if (totals.gpu) metrics_.gpu_energy_joules(ledger_.gpu_uuid()).advance_to(totals.gpu->total_joules);
  if (totals.host && !totals.host->estimated)
    metrics_.host_energy_joules().advance_to(totals.host->total_joules);
  if (const std::optional<double> intensity = ledger_.intensity_now())
    metrics_.grid_intensity(ledger_.grid().zone(), ledger_.grid().signal()).set(*intensity);
  const RunLedger::GpuState gpu = ledger_.gpu_state();
  if (gpu.sm_mhz) metrics_.gpu_clock_hertz(ledger_.gpu_uuid(), "sm").set(*gpu.sm_mhz * 1e6);
  if (gpu.memory_mhz) metrics_.gpu_clock_hertz(ledger_.gpu_uuid(), "memory").set(*gpu.memory_mhz * 1e6);
}

nlohmann::ordered_json EnergyJournal::parts_json(const RunLedger::Totals& totals) const {
  nlohmann::ordered_json json;
  if (totals.gpu) json["gpu"] = part_json(*totals.gpu);
  if (totals.host) json["host"] = part_json(*totals.host);
  if (ledger_.grid()) json["grid"] = ledger_.grid().description();
  return json;
}

void EnergyJournal::write_line() {
  if (!context_.writes || (!last_.gpu && !last_.host)) return;
  if (!jsonl_) {
    const std::optional<int64_t> goes_on =
        context_.first_step > 0 ? std::optional<int64_t>(INT64_MAX) : std::nullopt;
    jsonl_.emplace(context_.run_dir / "energy.jsonl", goes_on);
  }
  nlohmann::ordered_json line;
  line["session"] = session_;
  line["step"] = step_;
  line["steps"] = steps_;
  line["tokens"] = tokens_;
  line["seconds"] = last_.seconds;
  line.update(parts_json(last_));
  const RunLedger::GpuState gpu = ledger_.gpu_state();
  if (gpu.watts) line["gpu_watts"] = *gpu.watts;
  if (gpu.sm_mhz) line["gpu_sm_mhz"] = *gpu.sm_mhz;
  jsonl_->write(line);
  written_seconds_ = last_.seconds;
}

void EnergyJournal::show(telemetry::ProgressFields& fields) const {
  const auto& part = context_.device.is_cuda() ? last_.gpu : last_.host;
  if (!part) return;
  const std::string mark = part->estimated ? "~" : "";
  fields.emplace_back("", concat(mark, format_count(part->total_joules), "J"));
  if (tokens_ > 0)
    fields.emplace_back(
        "", concat(mark, short_number(part->total_joules * 1e3 / static_cast<double>(tokens_)), " mJ/token"));
  if (part->grams) fields.emplace_back("", concat(mark, short_number(*part->grams), " gCO2e"));
}

void EnergyJournal::finish() {
  for (const energy::PhaseSpan& span : timer_.finish()) ledger_.add(span);
  ledger_.finish();
  last_ = ledger_.totals();
  update_metrics(last_);
  write_line();
  if (jsonl_) jsonl_->sync();
}

void EnergyJournal::add_summary(nlohmann::ordered_json& summary) {
  const auto& device = context_.device.is_cuda() ? last_.gpu : last_.host;
  if (device && !device->estimated)
    summary["energy_joules"] = device->counter_joules.value_or(device->total_joules);
  if (context_.device.is_cuda() && last_.host && !last_.host->estimated)
    summary["host_energy_joules"] = last_.host->counter_joules.value_or(last_.host->total_joules);
  summary["energy_method"] = ledger_.method();
  if (!governor_.empty()) summary["clock_governor"] = governor_;
  if (!last_.gpu && !last_.host) return;
  nlohmann::ordered_json energy = parts_json(last_);
  energy["seconds"] = last_.seconds;
  energy["steps"] = steps_;
  energy["tokens"] = tokens_;
  if (device && tokens_ > 0) energy["joules_per_token"] = device->total_joules / static_cast<double>(tokens_);
  if (device && steps_ > 0) energy["joules_per_step"] = device->total_joules / static_cast<double>(steps_);
  const RunLedger::Cost cost = ledger_.cost();
  energy["samples"] = cost.num_samples;
  energy["sampling_share"] = cost.share;
  summary["energy"] = energy;
}

}  // namespace moebius::train
