// One optimizer step: forward and backward over the micro-batches, clipping, AdamW, load-free bias, numbers
// of the step.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/train_config.h"
#include "data/batch.h"
#include "moe/load_statistics.h"
#include "nn/decoder.h"
#include "ops/graph.h"
#include "ops/weight_gradients.h"
#include "parallel/mesh.h"
#include "parallel/pipeline.h"
#include "train/int8_experts.h"
#include "train/optimizer.h"
#include "train/phase_timer.h"
#include "train/quantisation.h"

namespace moebius::parallel {
class DataParallel;
}

namespace moebius::train {

nn::Recompute recompute_of(const std::string& word);

struct StepNumbers {
  int64_t step = 0;
  double loss = 0;          // mean cross-entropy over the targets, nats
  double balance_loss = 0;  // mean over micro-batches, coefficients applied; 0 when there is none
  double mtp_loss = 0;      // mean cross-entropy of the tokens after next, without its weight; 0 without it
  double gradient_norm = 0;
  double learning_rate = 0;
  bool skipped = false;  // loss or gradient was not finite: nothing was changed
  int64_t num_tokens = 0, num_targets = 0;
  double waited_s = 0;  // this process, or its GPU, stood still for other ranks (WatchedCommunicator)
  std::vector<moe::LayerLoad> layers;

  double max_violation() const;  // of the worst layer; 0 without experts
};

// What the micro-batches of a step hold, over all ranks.
struct StepTotals {
  int64_t num_tokens = 0, num_targets = 0;
};
StepTotals totals_of(const std::vector<data::Batch>& micro_batches);

// What ranks settle for the step to come while one ends: begin() is called behind its last pass, end() before
// its updated weights are on their way, which a short message would queue behind.
struct StepAhead {
  std::function<void()> begin = [] {}, end = [] {};
};

// The numbers of a step that may still be running on the device.
class PendingNumbers {
 public:
  // Waits for the device where there is one.
  StepNumbers get() const;

 private:
  friend class TrainStep;
  StepNumbers known_;
  at::Tensor host_;  // loss, balance loss, norm, scale, loss of multi-token prediction; load statistics
  std::optional<c10::Event> done_;
  const moe::LoadStatistics* statistics_ = nullptr;
  int64_t num_micro_ = 1;
  const parallel::Mesh* mesh_ = nullptr;  // of several ranks on GPUs
  std::shared_ptr<double> waited_told_s_;
};

class TrainStep {
 public:
  // All must outlive the object. With train.cuda_graph on a GPU the third step of a shape of batch and those
  // after it are recorded and replayed (ops/graph.h); `recorder` stands in for the GPU's in tests.
  TrainStep(const config::RunConfig& config, nn::Decoder& decoder, AdamW& optimizer,
            std::unique_ptr<ops::GraphRecorder> recorder = nullptr);

  // Steps that were replayed so far.
  int64_t num_replayed() const { return num_replayed_; }

  // Phases of the steps are marked there; it outlives the object.
  void mark_phases(PhaseTimer& timer) { phases_ = &timer; }

  // Makes this a rank of several, which all run the same steps on their own micro-batches: `shares` sums
  // their gradients, and the optimizer has its slices; losses and load statistics are summed over the data
  // axis, so that every rank has those of the whole batch and changes its selection bias alike. `load_sum`,
  // when given: the ranks share each micro-batch, and its balance loss is that of all its tokens;
  // `sequence_sum`: those that share each sequence, and with it, where `load_sum` is null, each micro-batch.
  // All outlive the object. Steps are not recorded.
  void join(const parallel::Mesh& mesh, parallel::DataParallel& shares, const nn::LoadSum* load_sum = nullptr,
            const nn::LoadSum* sequence_sum = nullptr);

  // Runs step `step` (from 1) of config.train.steps on its micro-batches. On a device the work is queued,
  // without a host synchronisation, and the numbers follow. `totals`: of all ranks, where there are several.
  // `ahead`: called where there are several ranks.
  PendingNumbers run(int64_t step, std::vector<data::Batch>& micro_batches,
                     const std::optional<StepTotals>& totals = std::nullopt, const StepAhead& ahead = {});

  // Drives quantised products; it outlives the object. Steps are not recorded then.
  void quantise(Quantisation& quantisation) { quantisation_ = &quantisation; }

  // In which the passes of a step of so many micro-batches are made.
  const tune::PipelineSchedule& schedule_for(int64_t num_micro);
  // Experts whose codes follow their weights; it outlives the object.
  void follow(Int8Experts& experts) { int8_experts_ = &experts; }

  // What balance.bias_rule = "forecast" remembers, per layer with experts; empty with other rules.
  std::vector<moe::ForecastBias>& bias_rules() { return bias_rules_; }

  // The name of the first tensor that is not finite when `step` is computed again on these micro-batches:
  // parameters first, then intermediate results in order, then gradients; empty when all are finite.
  // Gradients are released.
  std::string find_non_finite(std::vector<data::Batch>& micro_batches);

 private:
  // Scalars of a micro-batch; the last two may be undefined.
  struct MicroLosses {
    at::Tensor loss, balance, mtp;
  };
  // All that is computed in a step: nothing on the host depends on what the step before has computed.
  struct Work {
    int64_t num_micro = 1;
    double scale = 1;  // of the loss: one over the targets of the step
    double learning_rate = 0;
    int64_t step = 1;
    at::Tensor scalars;  // of the optimizer, instead of the last two; may be undefined
    std::function<nn::TokenBatch(int64_t micro)> tokens;
    std::function<int64_t(int64_t micro)> tokens_of;  // their number; of several stages
    StepAhead ahead;
  };
  // Returns the numbers of the step, kHead and the load statistics, on the device.
  at::Tensor compute(const Work& work);
  // A shape of batch whose steps can be one recording.
  struct Bucket {
    std::vector<nn::TokenBatch> tokens;  // of each micro-batch, always the same memory
    at::Tensor scalars, numbers, angles;
    int64_t num_steps = 0;  // that were run without the recording
    std::unique_ptr<ops::Graph> graph;
  };
  // What tells shapes apart; empty when a step of these batches cannot be recorded.
  std::string bucket_key(const std::vector<data::Batch>& micro_batches, int64_t num_targets) const;
  at::Tensor run_in_bucket(Bucket& bucket, Work work, std::vector<data::Batch>& micro_batches);

  void mark(energy::Phase phase) {
    if (phases_ != nullptr) phases_->mark(phase);
  }
  // Ranks that have micro-batches, or parts of them, of their own.
  int64_t num_ranks() const { return mesh_ == nullptr ? 1 : mesh_->data().size(); }
  // The losses and the load statistics, summed over them and the stages: on their way until finish_sum().
  struct SumOfRanks {
    at::Tensor all;
    parallel::Pending pending;
  };
  SumOfRanks begin_sum(const MicroLosses& losses);
  void finish_sum(SumOfRanks& sum, MicroLosses& losses);
  // What ranks do together behind the last pass of a step: gradients, losses, statistics.
  void meet(const Work& work, MicroLosses& losses);
  // Passes a micro-batch through a piece of the model and adds its losses to those of the step.
  parallel::PieceResult forward(const Work& work, const tune::PipelineTask& task, const at::Tensor& input,
                                MicroLosses& losses);
  // Adds the gradients of a micro-batch.
  void backward(const tune::PipelineTask& task, bool is_last, const std::function<void()>& pass);
  // Adds those of its weights, where they were left.
  void finish_weights(const tune::PipelineTask& task, bool is_last);
  // What is differentiated; fills in losses.balance and losses.mtp.
  at::Tensor total_loss(MicroLosses& losses, const nn::DecoderOutput& output, double scale,
                        int64_t num_micro) const;

  const config::RunConfig& config_;
  nn::Decoder& decoder_;
  AdamW& optimizer_;
  moe::LoadStatistics statistics_;
  std::vector<moe::ForecastBias> bias_rules_;
  nn::ForwardOptions options_;
  std::unique_ptr<ops::GraphRecorder> recorder_;  // null: steps are not recorded
  std::map<std::string, Bucket> buckets_;
  int64_t num_replayed_ = 0;
  PhaseTimer* phases_ = nullptr;
  const parallel::Mesh* mesh_ = nullptr;  // null: one process
  parallel::DataParallel* shares_ = nullptr;
  std::shared_ptr<double> waited_told_s_ = std::make_shared<double>(0);  // what earlier steps have told
  std::optional<tune::PipelineSchedule> schedule_;                       // of the last step
  // Of micro-batches between their forward passes and the tasks of their weights, where these are apart.
  std::map<int64_t, ops::WeightGradients> weights_;
  Quantisation* quantisation_ = nullptr;
  Int8Experts* int8_experts_ = nullptr;
};

}  // namespace moebius::train
