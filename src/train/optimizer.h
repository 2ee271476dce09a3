// AdamW over the parameters of a model: state, groups, checkpoint view. The arithmetic is in ops/optimizer.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "config/train_config.h"
#include "nn/param.h"
#include "ops/optimizer.h"
#include "parallel/data_parallel.h"

namespace moebius::train {

// Bytes of each of the two moments of what this process holds of a parameter, as optimizer.state_dtype asks
// for, scales included.
int64_t moment_bytes(const nn::Param& param, const std::string& state_dtype);

class AdamW {
 public:
  // Allocates moments (zeros) and, for bf16 parameters when asked for, fp32 master weights (copies of the
  // parameters: construct after they have their values). The table must outlive the optimizer.
  AdamW(const config::OptimizerConfig& config, nn::ParamTable& params);
  // Updates the slices alone, and has state for no more.
  AdamW(const config::OptimizerConfig& config, const std::vector<parallel::OwnedSlice>& slices);

  // Sum of the squares of the gradients that exist, fp32 scalar on the device.
  at::Tensor sum_of_squares() const;
  // Global norm and the clipping factor of it.
  struct Clip {
    at::Tensor norm, scale;
  };
  Clip clip(const at::Tensor& sum_of_squares) const;

  // One step (`step` counts from 1) with the learning rate `lr`; parameters without a gradient are left
  // alone. Nothing changes when clip.scale is not finite. Then the gradients are released.
  void step(double lr, int64_t step, const at::Tensor& clip_scale);
  // The same with what depends on `lr` and `step` in a tensor on the device, scalars(lr, step) of any earlier
  // time: queued work then holds no number of its step.
  void step(const at::Tensor& scalars, const at::Tensor& clip_scale);
  // fp32 on the CPU.
  at::Tensor scalars(double lr, int64_t step) const;
  void release_gradients();

  // Names "m.<parameter>", "v.<parameter>", "master.<parameter>"; with moments in eight bits also "m_scale."
  // and "v_scale.". Of slices the parts that they have, flat.
  std::vector<ckpt::NamedTensor> tensors() const;

  // One tensor of the state and what of the parameter it is for: elements [begin, end) of those that this
  // process holds; `unit` of them share one element of the tensor.
  struct State {
    std::string name;
    const nn::Param* param;
    int64_t begin, end, unit;
    at::Tensor tensor;
  };
  std::vector<State> state() const;

 private:
  struct Slot {
    nn::Param* param;
    int64_t begin, end;
    at::Tensor value, grad;  // grad undefined: that of the parameter
    at::Tensor m, v, master;
    at::Tensor m_scale, v_scale;  // of moments in eight bits
    double lr_scale;
    double weight_decay;
  };
  static const at::Tensor& grad_of(const Slot& slot) {
    return slot.grad.defined() ? slot.grad : slot.param->value.grad();
  }
  void add_slot(nn::Param& param, int64_t begin, int64_t end, const at::Tensor& value,
                const at::Tensor& grad);
  void apply(double lr, int64_t step, const at::Tensor& scalars, const at::Tensor& clip_scale);
  ops::AdamWOptions options(int64_t step) const { return {config_.beta1, config_.beta2, config_.eps, step}; }

  config::OptimizerConfig config_;
  std::vector<Slot> slots_;
};

}  // namespace moebius::train
