// Where the numbers of a run go: progress line, metrics.jsonl, Prometheus, summary.json.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/train_config.h"
#include "moe/balance/forecast_score.h"
#include "parallel/communicator.h"
#include "telemetry/jsonl.h"
#include "telemetry/metrics.h"
#include "telemetry/progress.h"
#include "telemetry/train_metrics.h"
#include "train/energy_journal.h"
#include "train/evaluate.h"
#include "train/step.h"

namespace moebius::train {

// Totals of a run over all its processes.
struct Totals {
  int64_t tokens = 0;        // padding included
  int64_t targets = 0;       // tokens that the loss counts
  double train_seconds = 0;  // in optimizer steps; validation, samples and waiting for the disk not counted
  int64_t skipped_steps = 0;
};

// What metrics.jsonl holds of the steps up to `step`.
Totals totals_until(const std::filesystem::path& metrics_file, int64_t step);

class Report {
 public:
  struct Context {
    const config::RunConfig& config;
    std::filesystem::path run_dir;
    at::Device device{at::kCPU};
    std::string device_name;
    int64_t first_step = 0;  // steps done before
    double flops_per_token = 0;
    std::optional<double> peak_flops;
    std::optional<std::string> pci_bus_id;  // of the GPU
    int num_ranks = 1;
    bool is_first = true;  // the rank that shows and writes; the others keep the numbers to themselves
  };
  Report(const Context& context, telemetry::TrainMetrics& metrics);

  // Validation of a step goes with the numbers of that step: call before them.
  void validation(int64_t step, const Evaluation& evaluation);
  // A finished step that took `seconds`. `waited`: the host was held up by the device for it.
  void step(const StepNumbers& numbers, double seconds, bool waited = false);
  // Marks what the device does; see PhaseTimer.
  PhaseTimer& phases() { return energy_.timer(); }
  EnergyJournal& energy() { return energy_; }
  void checkpoint(double seconds);
  void note(const std::string& text) {
    if (progress_) progress_->note(text);
  }
  void finish();

  const Totals& totals() const { return totals_; }
  const StepNumbers& last() const { return last_; }
  // Of the last step, when it was validated.
  std::optional<double> validation_loss() const;

  struct Ending {
    bool interrupted = false;
    double wall_seconds = 0, data_wait_seconds = 0, checkpoint_stall_seconds = 0;
    int64_t parameters = 0, active_parameters = 0;
    int num_threads = 0;
    std::map<std::string, std::map<std::string, parallel::Traffic>> sent;  // by axis and collective
    std::map<std::string, double> waited_s;                                // by axis
  };
  // summary.json, written atomically.
  void write_summary(const Ending& ending);

 private:
  void show(const StepNumbers& numbers);
  // Without the first ones of the process.
  static double median_of_steps(const std::vector<double>& values);
  // Judges the forecasts that fall due with these shares, and makes the next ones. Mean error per predictor,
  // in their order; empty when none is due.
  std::vector<double> forecast(const std::vector<moe::LayerLoad>& layers);
  // Shows the predictors what a resumed run logged.
  void replay_forecasts();

  Context context_;
  telemetry::TrainMetrics& metrics_;
  std::optional<telemetry::Progress> progress_;  // of the first rank
  std::optional<telemetry::JsonlWriter> jsonl_;
  EnergyJournal energy_;
  double counted_joules_ = 0;  // by the metric
  Totals totals_;
  StepNumbers last_;
  std::optional<std::pair<int64_t, Evaluation>> evaluation_;
  bool evaluation_is_new_ = false;
  std::vector<double> step_seconds_;    // of this process, the first ones left out
  std::vector<double> waited_seconds_;  // the same steps, for other ranks
  std::deque<double> recent_seconds_;   // for the speed shown
  std::deque<double> recent_violation_;
  std::vector<std::vector<moe::ForecastScore>> forecasts_;  // per predictor, per layer
};

// Peak memory of the model's device: tensors on a GPU, resident memory of the process on the CPU.
int64_t peak_memory_bytes(at::Device device);

}  // namespace moebius::train
