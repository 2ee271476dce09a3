// One optimizer step: forward and backward over the micro-batches, clipping, AdamW, load-free bias, numbers
// of the step.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/train_config.h"
#include "data/batch.h"
#include "moe/load_statistics.h"
#include "nn/decoder.h"
#include "train/optimizer.h"

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
  std::vector<moe::LayerLoad> layers;

  double max_violation() const;  // of the worst layer; 0 without experts
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
};

class TrainStep {
 public:
  // All must outlive the object.
  TrainStep(const config::RunConfig& config, nn::Decoder& decoder, AdamW& optimizer);

  // Runs step `step` (from 1) of config.train.steps on its micro-batches. On a device the work is queued,
  // without a host synchronisation, and the numbers follow.
  PendingNumbers run(int64_t step, std::vector<data::Batch>& micro_batches);

  // The name of the first tensor that is not finite when `step` is computed again on these micro-batches:
  // parameters first, then intermediate results in order, then gradients; empty when all are finite.
  // Gradients are released.
  std::string find_non_finite(std::vector<data::Batch>& micro_batches);

 private:
  // Scalars of a micro-batch; the last two may be undefined.
  struct MicroLosses {
    at::Tensor loss, balance, mtp;
  };
  // Adds the gradients of a micro-batch.
  MicroLosses accumulate(data::Batch& batch, double scale, int64_t num_micro);
  // What is differentiated; fills in losses.balance and losses.mtp.
  at::Tensor total_loss(MicroLosses& losses, const nn::DecoderOutput& output, double scale,
                        int64_t num_micro) const;

  const config::RunConfig& config_;
  nn::Decoder& decoder_;
  AdamW& optimizer_;
  moe::LoadStatistics statistics_;
  nn::ForwardOptions options_;
};

}  // namespace moebius::train
