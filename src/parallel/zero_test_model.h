// A model with experts and batches for it, small enough to train many times in a test. Only for tests.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "base/philox.h"
#include "config/model_config.h"
#include "nn/decoder.h"

namespace moebius::parallel {

inline constexpr int64_t kZeroTokens = 24, kZeroVocab = 50, kZeroLayers = 3;

inline config::ModelConfig zero_model() {
  config::ModelConfig model;
  model.layers = kZeroLayers;
  model.dim = 32;
  model.heads = 4;
  model.kv_heads = 2;
  model.ffn_dim = 48;
  model.vocab = kZeroVocab;
  model.qk_norm = "head";
  model.init_std = 0.1;
  model.moe.experts = 4;
  model.moe.top_k = 2;
  model.moe.expert_dim = 24;
  model.moe.dense_layers = {0};
  model.moe.balance.aux_loss = 0;
  model.moe.balance.z_loss = 0.001;
  return model;
}

// Micro-batch `micro` of all ranks together: two documents.
inline nn::TokenBatch zero_batch(int64_t step, int64_t micro) {
  const Philox random(11, "tokens", static_cast<uint64_t>(step));
  nn::TokenBatch batch;
  batch.documents.cu_seqlens = {0, kZeroTokens / 3, kZeroTokens};
  batch.documents.max_length = batch.max_position = kZeroTokens - kZeroTokens / 3;
  batch.positions_T =
      at::cat({at::arange(kZeroTokens / 3, at::kInt), at::arange(kZeroTokens - kZeroTokens / 3, at::kInt)});
  batch.tokens_T = at::empty({kZeroTokens}, at::kLong);
  int64_t* const tokens = batch.tokens_T.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < kZeroTokens; ++i)
    tokens[i] =
        static_cast<int64_t>(random.below(static_cast<uint64_t>(micro * kZeroTokens + i), kZeroVocab / 2));
  batch.targets_T = (batch.tokens_T * 3 + 1).remainder(kZeroVocab);
  return batch;
}

}  // namespace moebius::parallel
