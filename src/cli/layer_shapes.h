// Sizes of the layers of known models, for `moebius bench moe_layer` and its kin. Those that
// tools/peers/moe_layer.py names too have the same sizes there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/train_config.h"

namespace moebius::cli {

struct LayerShape {
  std::string name;
  int64_t tokens;  // of one layer; a step has 4 sequences of 4,096 (tiny: of 64)
  int64_t dim, expert_dim, experts, top_k;
  // Heads of attention; 0: the shape is one of experts only.
  int64_t heads = 0, kv_heads = 0, head_dim = 128;
  int64_t sequence = 4096;
  int64_t vocab = 32000;
  // A model for `step`; 0 layers: none. The rest as in configs/bench.
  int64_t step_layers = 0;
  std::string qk_norm = "none";
  double rope_theta = 10000.0, norm_eps = 1e-5;
  bool normalize_weights = true;
};

const std::vector<LayerShape>& layer_shapes();

// UserError naming the nearest when there is no such shape.
const LayerShape& find_layer_shape(const std::string& name);

// The config of a training step of the shape: that of configs/bench where there is one (layer_bench_test.cpp
// holds them together). UserError for a shape without one.
config::RunConfig step_config(const LayerShape& shape);

}  // namespace moebius::cli
