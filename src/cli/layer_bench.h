// One layer of a model at the sizes of a shape, as the model runs it: inputs, passes, what they cost, and a
// plain reference in fp32. Behind `moebius bench moe_layer|attention|linear_ce|adamw`.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "cli/layer_shapes.h"
#include "cli/layer_timing.h"
#include "config/train_config.h"
#include "ops/cases/tolerance.h"

namespace moebius::cli {

struct LayerWork {
  // Model arithmetic, counted as the peers count it (docs/op-cases.md); 0 for a layer bound by memory.
  double forward_flops = 0, total_flops = 0;
  // The least that must be read and written.
  double forward_bytes = 0, total_bytes = 0;
};

using ckpt::NamedTensor;

struct LayerBench {
  LayerPasses passes;
  LayerWork work;
  ops::cases::OpClass op_class = ops::cases::OpClass::chain;
  // What one run of the op gives (outputs, then gradients), and the same in fp32 by libtorch's plainest
  // operators on the same device.
  std::function<std::vector<NamedTensor>()> results, reference;
};

// The routed experts with the routing given, by the operator that the model calls (ops::expert_ffn):
// gradients of x, of both weights and of the routing weights. 6 T K H I operations forward and twice that
// backward; router and permutation are not counted. Natural routing: top-k of the logits of a random linear
// router. With `int8` by ops::int8_training_expert_ffn: rounding activations and gradients is part of it,
// rounding the weights, once a step, is not.
LayerBench moe_layer_bench(const LayerShape& shape, at::ScalarType dtype, at::Device device,
                           bool int8 = false);

// Causal attention over documents of shape.sequence tokens: 2 B H S^2 d forward, 2.5 times that backward.
LayerBench attention_bench(const LayerShape& shape, at::ScalarType dtype, at::Device device);

// Output layer and cross-entropy: 6 T D V in all; the operator makes the gradients in its forward pass.
LayerBench linear_ce_bench(const LayerShape& shape, at::ScalarType dtype, at::Device device);

// A step of AdamW on the parameters of one block, with the state that `optimizer` asks for.
LayerBench adamw_bench(const LayerShape& shape, const config::OptimizerConfig& optimizer,
                       at::ScalarType dtype, at::Device device);

// Largest normalised error of the results; `where` says in which. Infinite when the lists differ.
double largest_error(const std::vector<NamedTensor>& got, const std::vector<NamedTensor>& want,
                     std::string* where);

}  // namespace moebius::cli
