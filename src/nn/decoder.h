// The decoder: embedding, blocks, final norm, output layer. Single-device; pre-norm blocks
//   x += attention(norm(x)); x += feed_forward(norm(x)).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/model_config.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/kv_cache.h"
#include "nn/param.h"
#include "ops/attention.h"

namespace moebius::nn {

// Builds the feed-forward of a layer and declares its parameters under the prefix.
using FeedForwardFactory =
    std::function<std::unique_ptr<FeedForward>(int64_t layer, const std::string& prefix, ParamTable& params)>;

// A flat micro-batch on the model's device.
struct TokenBatch {
  at::Tensor tokens_T;     // int64
  at::Tensor targets_T;    // int64, kernels::kIgnoredTarget for none
  at::Tensor positions_T;  // int32, from 0 in each document
  ops::Segments documents;
  int64_t max_position = 0;  // largest position + 1
  at::Tensor sequence_of_T;  // see FeedForwardContext
  int64_t num_sequences = 1;
};

enum class Recompute : uint8_t { none, selective, full };

struct ForwardOptions {
  Recompute recompute = Recompute::none;
  bool with_losses = false;  // balance losses
  bool may_drop = true;      // capacity limits apply
  RoutingObserver* observer = nullptr;
  // Called with every named intermediate result, in order of computation (to find the first non-finite one).
  std::function<void(const std::string& name, const at::Tensor& value)> probe;
};

struct DecoderOutput {
  at::Tensor hidden_TD;     // after the final norm
  at::Tensor balance_loss;  // sum over layers, coefficients applied; undefined when there is none
};

class Decoder {
 public:
  // Only declares; params().allocate() gives memory. `config` must be valid, with vocab > 0.
  Decoder(const config::ModelConfig& config, const FeedForwardFactory& factory);
  ~Decoder();

  ParamTable& params() { return params_; }
  const ParamTable& params() const { return params_; }
  const config::ModelConfig& config() const { return config_; }
  at::Device device() const { return embedding_->value.device(); }

  DecoderOutput forward(const TokenBatch& batch, const ForwardOptions& options) const;

  // Sum over the targets of the cross-entropy, times `scale`; see ops::linear_cross_entropy.
  at::Tensor loss(const at::Tensor& hidden_TD, const at::Tensor& targets_T, double scale,
                  at::Tensor* token_loss_T = nullptr) const;

  // Logits of final hidden states, (T, V) fp32; for few rows.
  at::Tensor logits(const at::Tensor& hidden_TD) const;

  // One sequence, no autograd: passes tokens_T (the ones after those in the cache) and returns the logits of
  // the last one, (V) fp32.
  at::Tensor next_logits(const at::Tensor& tokens_T, KvCache& cache) const;

  KvCache make_cache(int64_t capacity) const;

 private:
  struct Block;
  // The next block's residual stream and what is to be added to it.
  struct Stream {
    at::Tensor x_TD, delta_TD;
  };

  const at::Tensor& output_weight() const { return output_ ? output_->value : embedding_->value; }
  void need_positions(int64_t count) const;

  config::ModelConfig config_;
  ParamTable params_;
  Param* embedding_ = nullptr;  // (V, D)
  Param* output_ = nullptr;     // (V, D); null when tied
  Param* final_norm_ = nullptr;
  std::vector<std::unique_ptr<Block>> blocks_;
  int64_t head_dim_;
  mutable at::Tensor cos_sin_PD_;  // grows with the longest sequence seen
};

}  // namespace moebius::nn
