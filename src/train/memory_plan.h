// The memory that a training step takes, known before any of it is allocated. The step is replayed on sizes
// instead of tensors: what each operator allocates, keeps for the backward pass and frees, in the order of
// the program, so that the peak and the moment of the peak come out rather than being guessed at.
#pragma once

#include <cstdint>
#include <string>

#include "config/train_config.h"
#include "nn/param.h"

namespace moebius::train {

struct MemoryByClass {
  int64_t weights_bytes = 0;      // parameters and buffers
  int64_t master_bytes = 0;       // fp32 copies of bf16 weights
  int64_t moments_bytes = 0;      // of the optimizer
  int64_t gradients_bytes = 0;    // of the weights
  int64_t activations_bytes = 0;  // kept from the forward for the backward pass
  int64_t workspace_bytes = 0;    // intermediate results, freed within the pass that made them
  int64_t input_bytes = 0;        // a micro-batch of token ids, and the table of rotary angles

  int64_t total() const;
};

struct MemoryPlan {
  MemoryByClass at_peak;       // what is held at the moment at which most is held
  MemoryByClass largest;       // the most that each class holds at any moment
  std::string peak_moment;     // "loss", "backward of layer 3", …
  int64_t snapshot_bytes = 0;  // host memory of background checkpoints; pinned where the model is on a device
  bool snapshot_beside_step = false;  // a step runs while the snapshot is held

  // Tensors of a step, on the model's device.
  int64_t peak_bytes() const { return at_peak.total(); }
};

// For config.train with its precision, micro-batch and recomputation, and the model declared in `params`
// (which need no memory). `on_cuda`: the operators' CUDA paths, bf16 attention through cuDNN, sizes rounded
// as libtorch's allocator does it; otherwise the CPU paths.
MemoryPlan plan_memory(const config::RunConfig& config, const nn::ParamTable& params, bool on_cuda);

}  // namespace moebius::train
