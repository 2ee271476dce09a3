// Quantised products of a model as the section [quant] says: set up on a decoder, driven by the steps of a
// training, saved with its checkpoints. The arithmetic is in quant/fake_quantiser.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "config/train_config.h"
#include "nn/decoder.h"
#include "quant/fake_quantiser.h"
#include "train/optimizer.h"

namespace moebius::train {

// Group names in checkpoints.
inline constexpr char kQuantGroup[] = "quant";
inline constexpr char kQuantOptimizerGroup[] = "quant_optimizer";

class Quantisation {
 public:
  // Gives the decoder's parameters their products; null with quant.scheme = "none". The parameters must have
  // their memory. Begins with hard rounding, as for evaluation.
  static std::unique_ptr<Quantisation> attach(const config::RunConfig& config, nn::Decoder& decoder);

  // A training step: begin_step, begin_micro before each pass, end_step between the gradients and the update
  // of the weights; it updates the learned steps.
  void begin_step(int64_t step);
  void begin_micro(int64_t micro) { quantiser_.begin_micro(micro); }
  void end_step(int64_t step, const at::Tensor& clip_scale);
  void release_gradients();

  // What is left of the compensation in a step: 1, falling to 0 over the last steps.
  double compensation_in(int64_t step) const;

  // Hard rounding, or no rounding at all, from here to the next step.
  void evaluate_quantised() { quantiser_.set_mode(quant::FakeQuantiser::Mode::evaluating); }
  void evaluate_floats() { quantiser_.set_mode(quant::FakeQuantiser::Mode::floating); }

  // Remembered ranges and errors, learned steps and the state of their optimizer; groups without tensors are
  // left out.
  std::vector<ckpt::TensorGroup> groups() const;
  // Fills those that evaluation needs.
  void restore(const ckpt::Checkpoint& checkpoint);

  quant::FakeQuantiser& quantiser() { return quantiser_; }
  const config::QuantConfig& config() const { return config_; }
  int64_t num_products() const { return num_products_; }

 private:
  Quantisation(const config::RunConfig& config, nn::Decoder& decoder);

  config::QuantConfig config_;
  config::ScheduleConfig schedule_;
  int64_t num_steps_;
  quant::FakeQuantiser quantiser_;
  int64_t num_products_ = 0;
  nn::ParamTable steps_;
  std::optional<AdamW> optimizer_;  // of learned steps
};

// The part of a model that a weight belongs to, in the words of quant.classes; empty for one that is never
// quantised.
std::string quant_class_of(const nn::ParamSpec& spec);

}  // namespace moebius::train
