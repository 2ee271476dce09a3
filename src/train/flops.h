// Floating-point operations that the model itself needs, the base of model_tflops and MFU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "config/train_config.h"

namespace moebius::train {

// Weights of matrix products that one token passes in training: router, chosen and shared experts, the output
// layer and what multi-token prediction adds included, the embedding's look-up not.
int64_t active_linear_weights(const config::ModelConfig& model);

// Forward and backward of one token: 6 x active linear weights + 6 L S H d for causal attention over
// sequences of S tokens, counted once (with windows the tokens seen instead of S / 2, and the widths of query
// and value heads instead of 2 d). Recomputation is not counted. `model.vocab` must be set.
double model_flops_per_token(const config::ModelConfig& model, int64_t sequence);

// What train.recompute adds to that: computed a second time in the backward pass, matrix products and
// attention (the passes over memory have no products). `config.train.recompute` must not be "auto".
double recompute_flops_per_token(const config::RunConfig& config);

// Dense bf16 rate of the matrix units in FLOP/s by the vendor's data sheet; none for devices that are not
// listed.
std::optional<double> peak_bf16_flops(const std::string& device_name);

}  // namespace moebius::train
