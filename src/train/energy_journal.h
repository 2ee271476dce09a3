// Where a run's joules and grams go: the progress line, metrics.jsonl, Prometheus, summary.json, and
// energy.jsonl, which `moebius energy report` reads (docs/formats/metrics.md). Phases come from the
// PhaseTimer, joules from the RunLedger.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "config/energy_config.h"
#include "energy/grid_intensity.h"
#include "energy/run_ledger.h"
#include "telemetry/jsonl.h"
#include "telemetry/progress.h"
#include "telemetry/train_metrics.h"
#include "train/phase_timer.h"

namespace moebius::train {

// The grid of a config; UserError when its trace cannot serve a run that begins now.
energy::GridIntensity grid_of(const config::EnergyConfig& config);

class EnergyJournal {
 public:
  struct Context {
    const config::EnergyConfig& config;
    std::filesystem::path run_dir;
    at::Device device{at::kCPU};
    std::optional<std::string> pci_bus_id;
    int64_t first_step = 0;  // > 0: energy.jsonl goes on
    bool writes = true;
  };
  EnergyJournal(const Context& context, telemetry::TrainMetrics& metrics);

  PhaseTimer& timer() { return timer_; }
  const std::optional<energy::NvmlDevice>& gpu() const { return ledger_.gpu(); }

  // After a step whose numbers are known. `waited`: see PhaseTimer::take.
  void step(int64_t step, int64_t num_tokens, bool waited);
  // The device's joules since this process began, as its counter said at the last sample; costs no reading.
  std::optional<double> device_joules() const;
  void show(telemetry::ProgressFields& fields) const;
  // Last attributions. Then the members of summary.json.
  void finish();
  // What the clock governor did, in words, for the summary; empty: it was off.
  void set_governor(const std::string& description) { governor_ = description; }
  void add_summary(nlohmann::ordered_json& summary);

 private:
  void write_line();
  void update_metrics(const energy::RunLedger::Totals& totals);
  nlohmann::ordered_json parts_json(const energy::RunLedger::Totals& totals) const;

  Context context_;
  telemetry::TrainMetrics& metrics_;
  energy::RunLedger ledger_;
  PhaseTimer timer_;
  std::optional<telemetry::JsonlWriter> jsonl_;  // once there is something to write
  std::string session_;                          // begin of this process, UTC
  int64_t step_ = 0, steps_ = 0, tokens_ = 0;    // the last one done; of this process
  double written_seconds_ = 0;
  energy::RunLedger::Totals last_;
  std::string governor_;
};

}  // namespace moebius::train
