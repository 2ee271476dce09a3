// A whole training run: data, model, loop, validation, samples, checkpoints, numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>

#include "config/train_config.h"
#include "train/run_folder.h"

namespace moebius::parallel {
class Mesh;
}

namespace moebius::train {

struct TrainOptions {
  config::RunConfig config;
  std::filesystem::path run_dir;
  RunMode mode = RunMode::fresh;
  at::Device device{at::kCPU};
  std::optional<std::string> metrics_address;  // serves Prometheus text there
  bool trace = false;                          // writes trace.json
  // The processes of the run, which all call train() with the same config; null: this one alone. The first
  // writes the folder and shows progress, the others write nothing. config.train.batch is that of all.
  const parallel::Mesh* mesh = nullptr;
  int local_ranks = 1;  // processes that share this one's memory: the machine's, or the GPU's
};

// The run cannot go on: too many steps in a row were not finite.
class TrainingFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct TrainResult {
  int64_t steps = 0;         // done in all
  bool interrupted = false;  // by SIGINT or SIGTERM; the run can be resumed
  std::string sample;        // of the finished model; empty when none was asked for
  double train_loss = 0;
  std::optional<double> validation_loss;
};

// UserError for everything that the user can mend, thrown before the run folder is touched wherever that is
// possible; TrainingFailed when the numbers break. Writes config.toml, metrics.jsonl, summary.json and
// checkpoints (see run_folder.h and docs/formats/).
TrainResult train(const TrainOptions& options);

}  // namespace moebius::train
