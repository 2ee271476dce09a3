// How products are quantised while a model trains, and what is done about the loss.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/field.h"

namespace moebius::config {

struct QuantConfig {
  std::string scheme = "none";
  int64_t weight_bits = 8;
  int64_t activation_bits = 8;
  std::string weight_scale = "channel";
  std::string activation_scale = "token";
  std::vector<std::string> classes = {"attention", "ffn", "experts"};
  std::string range = "minmax";
  double percentile = 0.999;
  double range_momentum = 0.95;
  double range_lr = 0.001;
  std::string compensation = "none";
  double share = 1.0;
  std::string compensate = "both";
  double anneal_fraction = 0.15;
  int64_t start_step = 1;
  int64_t calibration_batches = 8;

  bool is_on() const { return scheme != "none"; }
};

template <class V>
void describe(V& v, QuantConfig& c) {
  v.field("scheme", c.scheme, one_of({"none", "int8"}), "",
          "int8: products see weights and activations on the grid of symmetric integers (docs/int8.md); "
          "router, norms, embedding and output layer stay as they are.");
  v.field("weight_bits", c.weight_bits, range(2, 8), "bits", "Of a weight's code.");
  v.field("activation_bits", c.activation_bits, range(0, 8), "bits",
          "Of an activation's code; 0: activations are not quantised.");
  v.field("weight_scale", c.weight_scale, one_of({"channel", "tensor", "all_experts"}), "",
          "What shares a scale: an output channel, a weight (of experts: each one's), or all experts of a "
          "layer together.");
  v.field("activation_scale", c.activation_scale, one_of({"token", "tensor"}), "",
          "token: a scale for each token, from its own values. tensor: one for all tokens, remembered.");
  v.field("classes", c.classes, any(), "",
          "Which products: 'attention', 'ffn' (dense feed-forward and shared experts), 'experts'.");
  v.field("range", c.range, one_of({"minmax", "percentile", "mse", "learned"}), "",
          "What the largest code of weights and of activations with one scale stands for: the largest "
          "magnitude, a percentile, what rounds with the least mean square error, or a step learned beside "
          "the weights.");
  v.field("percentile", c.percentile, range(0, 1), "", "Share of the values inside the range 'percentile'.");
  v.field("range_momentum", c.range_momentum, range(0, 0.9999), "",
          "Of the running range of activations with one scale, per step.");
  v.field("range_lr", c.range_lr, range(0, 1), "",
          "Peak learning rate of learned steps, relative to them; follows the schedule.");
  v.field("compensation", c.compensation, one_of({"none", "uniform", "gaussian", "error_feedback"}), "",
          "While training: noise one step wide, or of 0.1 steps standard deviation, instead of rounding on a "
          "share of the elements; or the rounding error of the step before added to the weights (keeps an "
          "fp32 copy of them).");
  v.field("share", c.share, range(0, 1), "", "Elements that get noise; the others are rounded.");
  v.field("compensate", c.compensate, one_of({"both", "weights"}), "",
          "Where noise is added: weights and activations, or weights alone.");
  v.field("anneal_fraction", c.anneal_fraction, range(0, 1), "",
          "Share of the steps, at the end, in which compensation falls linearly to hard rounding.");
  v.field("start_step", c.start_step, at_least(1), "steps",
          "First step with quantised products; before it ranges are only observed.");
  v.field("calibration_batches", c.calibration_batches, at_least(1), "",
          "Batches that remembered ranges are taken from where no training has (moebius eval --set).");
}

}  // namespace moebius::config
