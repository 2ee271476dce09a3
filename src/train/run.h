// One training run after everything that can be refused has been: model, optimizer, loop, checkpoints,
// numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ckpt/async_checkpointer.h"
#include "data/loader.h"
#include "data/prepare.h"
#include "energy/powerd/live_governor.h"
#include "parallel/communicator.h"
#include "parallel/data_parallel.h"
#include "parallel/load_sum.h"
#include "train/evaluate.h"
#include "train/optimizer.h"
#include "train/quantisation.h"
#include "train/report.h"
#include "train/sharded_state.h"
#include "train/step.h"
#include "train/trainer.h"

namespace moebius::train {

// "cpu", or the GPU's name and where it is.
struct DeviceName {
  std::string name = "cpu";
  std::optional<std::string> pci_bus_id;
};
DeviceName name_of(at::Device device);

energy::powerd::LiveOptions governor_options(const config::EnergyConfig& config, const std::string& gpu_name);

// This process writes the folder and shows progress.
bool is_first(const TrainOptions& options);
// Ranks that take sequences of their own.
int64_t batch_parts(const TrainOptions& options);

class Run {
 public:
  // `lock`: of the process that writes the folder; null in the others. All outlive the object.
  Run(const TrainOptions& options, const config::RunConfig& config, const data::Sources& sources,
      const ckpt::RunLock* lock, telemetry::TrainMetrics& metrics);

  // Goes on from there; UserError when it is of another model.
  void restore(const ckpt::Checkpoint& checkpoint);

  TrainResult train(std::unique_ptr<data::BatchSource> batches);

 private:
  void restore_bias_rules(const ckpt::Checkpoint& checkpoint);
  // Waits for the step that runs on the device, validates if asked to, reports, and stops the run when too
  // many broke.
  void settle(bool validates = false);
  void after_step(int64_t step);
  // The result of an earlier save in the background, or of this one when it was not (see AsyncCheckpointer).
  Result<void> save(int64_t step);
  void save_and_go_on(int64_t step);
  // UserError when it cannot be saved.
  void save_at_end(int64_t step);
  void validate(int64_t step);
  std::string sample();
  void trace(int64_t next_step);
  void write_trace();
  void fail_when_broken(const StepNumbers& numbers);
  // The micro-batches of a step, and what the ranks tell each other of it.
  struct NextStep {
    std::vector<data::Batch> micro_batches;
    at::Tensor sums;  // whether one was asked to stop; tokens and targets
    parallel::Pending stopping, counting;
    bool is_loaded = false;
  };
  void load(data::Loader& loader);
  // One exchange for next_: begun while the step before ends, and before the first.
  void begin_agreement();
  void end_agreement();
  // Tokens and targets of next_ over all ranks; nothing when one of them was asked to stop before it.
  std::optional<StepTotals> agreed() const;

  const TrainOptions& options_;
  const config::RunConfig& config_;
  const data::Sources& sources_;
  std::unique_ptr<nn::Decoder> model_;
  std::unique_ptr<parallel::DataParallel> shares_;  // of several processes
  AdamW optimizer_;
  std::unique_ptr<Quantisation> quantisation_;  // null: products are those of floats
  std::unique_ptr<Int8Experts> int8_experts_;   // null: experts are as the rest
  TrainStep step_;
  telemetry::TrainMetrics& metrics_;
  std::optional<parallel::RankLoadSum> load_sum_, sequence_sum_;
  std::optional<ShardedState> state_;      // of several processes
  std::vector<ckpt::TensorGroup> groups_;  // of one
  std::optional<ckpt::AsyncCheckpointer> checkpointer_;
  std::optional<data::ValidationSet> validation_;

  std::optional<Report> report_;
  std::optional<energy::powerd::LiveGovernor> governor_;
  std::vector<data::Batch> micro_batches_;
  NextStep next_;
  std::optional<PendingNumbers> pending_;
  double step_began_ = 0;
  int64_t first_step_ = 0;
  int64_t broken_in_a_row_ = 0;
  int64_t saved_step_ = -1;
  double checkpoint_stall_seconds_ = 0;
  bool tracing_ = false;
};

}  // namespace moebius::train
