// Sparse upcycling: a dense model becomes one with experts by copying each feed-forward to all experts of its
// layer; the routers start fresh. With weights that sum to 1 over the chosen experts the new model computes
// what the dense one did, up to rounding, whatever the routers say. (Komatsuzaki et al. 2023, "Sparse
// Upcycling"; weights that keep the output: He et al. 2024, "Upcycling Large Language Models into Mixture of
// Experts")
#pragma once

#include "config/model_config.h"
#include "nn/param.h"

namespace moebius::moe {

// The config of the model that upcycling makes of a dense one: `moe` with the experts' width and biases of
// the dense feed-forward. UserError, naming field, value and way out, when `dense` has experts already, or
// when the output could not stay the same: weights that are not normalised or are scaled, a capacity limit,
// shared experts, another activation.
config::ModelConfig upcycled_config(const config::ModelConfig& dense, const config::MoeConfig& moe);

// Fills `routed`, the parameters of a decoder of upcycled_config(), from those of the dense decoder. Both are
// allocated; routers and selection biases stay as they are (ParamTable::initialise). Dtypes may differ.
void upcycle(const nn::ParamTable& dense, nn::ParamTable& routed);

}  // namespace moebius::moe
