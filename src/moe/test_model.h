// For tests: the shape of a small decoder with experts and one dense layer.
#pragma once

#include "config/model_config.h"

namespace moebius::moe {

inline config::ModelConfig test_model() {
  config::ModelConfig model;
  model.layers = 3;
  model.dim = 24;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 8;
  model.ffn_dim = 40;
  model.vocab = 50;
  model.init_std = 0.3;
  model.moe.experts = 8;
  model.moe.top_k = 3;
  model.moe.expert_dim = 12;
  model.moe.dense_layers = {1};
  return model;
}

}  // namespace moebius::moe
