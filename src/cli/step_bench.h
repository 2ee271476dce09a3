// A whole training step at the sizes of a config: forward, backward, clipping, AdamW. Behind `moebius bench
// step`.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <vector>

#include "cli/kernel_profile.h"
#include "config/train_config.h"

namespace moebius::cli {

struct StepTimes {
  double step_ms = 0;      // median over the steps after the first three
  int64_t peak_bytes = 0;  // of tensors, everything included
  double tokens_per_second = 0;
  double model_flops = 0;  // a second; train/flops.h
  double loss = 0;         // of the last step
};

// Trains config.train.steps steps (at least four) on synthetic tokens as `moebius train` does: a step is
// queued while the one before it runs. `config` must be valid, with its vocabulary.
StepTimes time_steps(const config::RunConfig& config, at::Device device);

// The kernels of `steps` steps after the first three.
std::vector<KernelTime> profile_steps(const config::RunConfig& config, int64_t steps, at::Device device);

// Whether two runs of `steps` steps from the same seed end with the same losses and gradient norms, bit for
// bit.
bool steps_repeat(const config::RunConfig& config, int64_t steps, at::Device device);

}  // namespace moebius::cli
