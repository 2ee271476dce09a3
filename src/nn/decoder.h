// The decoder: embedding, blocks, final norm, output layer; pre-norm blocks
//   x += attention(norm(x)); x += feed_forward(norm(x)).
// Written for one device; a tensor axis, where given, splits heads, hidden units and the vocabulary, and a
// context axis the tokens of each sequence (passes over a cache have all tokens everywhere). Of a
// model that is dealt out to the stages of a pipeline a decoder has some pieces: the first piece embeds, the
// last has final norm, output layer and multi-token prediction.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/model_config.h"
#include "nn/context_axis.h"
#include "nn/feed_forward.h"
#include "nn/kv_cache.h"
#include "nn/param.h"
#include "nn/recompute.h"
#include "nn/self_attention.h"
#include "nn/stage_link.h"
#include "nn/tensor_axis.h"
#include "ops/attention.h"

namespace moebius::nn {

// Builds the feed-forward of a layer and declares its parameters under the prefix.
using FeedForwardFactory =
    std::function<std::unique_ptr<FeedForward>(int64_t layer, const std::string& prefix, ParamTable& params)>;

// A flat micro-batch on the model's device. With a context axis tokens, targets, positions and sequence
// numbers are those of this process, and documents those of whole sequences.
struct TokenBatch {
  at::Tensor tokens_T;     // int64
  at::Tensor targets_T;    // int64, kernels::kIgnoredTarget for none
  at::Tensor positions_T;  // int32, from 0 in each document
  ops::Segments documents;
  int64_t max_position = 0;  // largest position + 1
  at::Tensor sequence_of_T;  // see FeedForwardContext
  int64_t num_sequences = 1;
  // Where the row behind a token's is not that of the next token (context parallelism): what
  // MultiToken::shift gives for the whole sequences. Undefined else.
  at::Tensor next_tokens_T, next_targets_T;
};

struct ForwardOptions {
  Recompute recompute = Recompute::none;
  int64_t recompute_layers = 0;  // see recompute_of_layer; the block of multi-token prediction comes last
  bool with_losses = false;      // balance losses
  bool with_mtp = false;         // the block of multi-token prediction runs, where the config has it
  bool may_drop = true;          // capacity limits apply
  RoutingObserver* observer = nullptr;
  const LoadSum* load_sum = nullptr;  // see FeedForwardContext, as of the next
  const LoadSum* sequence_sum = nullptr;
  // Called with every named intermediate result, in order of computation (to find the first non-finite one).
  std::function<void(const std::string& name, const at::Tensor& value)> probe;
};

struct DecoderOutput {
  // After the final norm; in the region of the output layer, so of all tokens (on a grid of tensor ranks
  // those of a line: Decoder::of_all_tokens).
  at::Tensor hidden_TD;
  at::Tensor stream_TD;     // what the next piece reads; undefined of the last, which alone has hidden_TD
  at::Tensor balance_loss;  // of all layers, coefficients applied; undefined when there is none
  // Multi-token prediction (nn/multi_token.h): its states and their targets, the tokens after next. Undefined
  // without it.
  at::Tensor mtp_hidden_TD, mtp_targets_T;
};

class MultiToken;
class ParamGate;

class Decoder {
 public:
  // Only declares; params().allocate() gives memory. `config` must be valid, with vocab > 0. With an axis
  // params().split() must say the same place on tp; layers of the factory are on the same axis. With pieces
  // only the parameters of those here are declared; the last stage has a copy of the embedding where its
  // output layer is that, or multi-token prediction reads it (is_embedding_shared).
  Decoder(const config::ModelConfig& config, const FeedForwardFactory& factory,
          std::shared_ptr<const TensorAxis> axis = nullptr,
          std::shared_ptr<const DecoderPieces> pieces = nullptr,
          std::shared_ptr<const ContextAxis> context = nullptr);
  ~Decoder();

  ParamTable& params() { return params_; }
  const ParamTable& params() const { return params_; }
  const config::ModelConfig& config() const { return config_; }
  at::Device device() const { return params_.params().front().value.device(); }
  const DecoderPieces* pieces() const { return pieces_.get(); }
  // The first and the last stage have the embedding, and its gradient is the sum of both.
  static bool is_embedding_shared(const config::ModelConfig& config, int stages) {
    return stages > 1 && (config.tied_embeddings || config.mtp.depth > 0);
  }

  // With pieces elsewhere only without autograd: all stages call it alike, and hidden_TD is there on the
  // last.
  DecoderOutput forward(const TokenBatch& batch, const ForwardOptions& options) const;

  // Piece number `chunk` of those here. x_TD: the stream_TD of the piece before; undefined for the first.
  DecoderOutput run_piece(int chunk, const TokenBatch& batch, const at::Tensor& x_TD,
                          const ForwardOptions& options) const;
  // Sizes of the stream between pieces on this process, of a micro-batch of num_tokens.
  std::vector<int64_t> stream_sizes(int64_t num_tokens) const;
  at::TensorOptions stream_options() const;

  // Sum over the targets of the cross-entropy, times `scale`; see ops::linear_cross_entropy.
  at::Tensor loss(const at::Tensor& hidden_TD, const at::Tensor& targets_T, double scale,
                  at::Tensor* token_loss_T = nullptr) const;

  // Of final hidden states of a pass without autograd those of all its tokens.
  at::Tensor of_all_tokens(const at::Tensor& hidden_TD, int64_t num_tokens) const {
    return axis_ == nullptr ? hidden_TD : axis_->rows_of_lines(hidden_TD, num_tokens);
  }

  // Logits of final hidden states, (T, V) fp32; for few rows, the same on all ranks.
  at::Tensor logits(const at::Tensor& hidden_TD) const;

  // One sequence, no autograd: passes tokens_T (the ones after those in the cache) and returns the logits of
  // the last one, (V) fp32; on every stage, which all call it alike.
  at::Tensor next_logits(const at::Tensor& tokens_T, KvCache& cache) const;

  // Told from now on of the blocks' use of their parameters (null: nobody is); it outlives all passes.
  void set_gate(ParamGate* gate) { gate_ = gate; }

  // The same, and the final hidden states of all these tokens, (T, D).
  at::Tensor next_hidden(const at::Tensor& tokens_T, KvCache& cache) const;

  KvCache make_cache(int64_t capacity, KvFormat format = KvFormat::model) const;

  // The table of rotary angles that the last pass has used; undefined before the first.
  const at::Tensor& angles() const { return cos_sin_PD_; }

 private:
  struct Block;
  // The next block's residual stream and what is to be added to it.
  struct Stream {
    at::Tensor x_TD, delta_TD;
  };

  // Sums of the routers (R, E): over the layers so far, where load is balanced over all of them together; a
  // row for each layer and segment of it, where several processes share the micro-batch or its sequences.
  struct ModelLoad {
    at::Tensor prob_sum_RE, counts_RE;
    int64_t num_tokens = 0;
    int64_t num_segments = 1;
    const LoadSum* load_sum = nullptr;
  };

  // Passes tokens that follow those in the cache, which then has them; at_end gets what the last block makes
  // of them, where this process has it.
  void pass_cached(const at::Tensor& tokens_T, KvCache& cache,
                   const std::function<void(const Stream&)>& at_end) const;
  at::Tensor normed(const Stream& stream) const;  // by the final norm
  const Param& output_layer() const { return output_ ? *output_ : *embedding_; }
  const at::Tensor& output_weight() const { return output_layer().value; }
  at::Tensor embed(const at::Tensor& tokens_T) const;
  void need_positions(int64_t count) const;
  LayerRange layers_of(int chunk) const;
  int num_chunks() const { return pieces_ ? pieces_->num_chunks() : 1; }
  bool is_first(int chunk) const { return !pieces_ || pieces_->piece_of(chunk) == 0; }
  bool is_last(int chunk) const { return !pieces_ || pieces_->is_last(pieces_->piece_of(chunk)); }
  // The stream that a piece begins with, from another process or the embedding.
  Stream receive_stream(int chunk, const at::Tensor& tokens_T) const;
  FeedForwardContext context_of(const TokenBatch& batch, const ForwardOptions& options) const;
  // Of the last of `count` tokens that a generation has passed.
  at::Tensor last_logits(const Stream& stream, int64_t count) const;
  // One block; adds its losses to the output and the load.
  Stream run_block(int64_t layer, Stream in, const TokenBatch& batch, const ForwardOptions& options,
                   DecoderOutput& output, ModelLoad& load) const;
  // hidden_TD: after the final norm.
  void predict_further(const at::Tensor& hidden_TD, const TokenBatch& batch, const ForwardOptions& options,
                       DecoderOutput& output, ModelLoad& load) const;
  at::Tensor model_balance_loss(const ModelLoad& load) const;

  config::ModelConfig config_;
  std::shared_ptr<const TensorAxis> axis_;      // null: this process has the whole model
  std::shared_ptr<const ContextAxis> context_;  // null: it has whole sequences
  ParamTable params_;
  std::shared_ptr<const DecoderPieces> pieces_;  // null: all layers are here
  Param* embedding_ = nullptr;                   // (V, D); null where no piece here reads it
  Param* output_ = nullptr;                      // (V, D); null when tied, and before the last piece
  Param* final_norm_ = nullptr;
  // By layer, null where it is elsewhere; behind those of the model, that of multi-token prediction.
  std::vector<std::unique_ptr<Block>> blocks_;
  std::unique_ptr<MultiToken> mtp_;  // null without it
  ParamGate* gate_ = nullptr;
  ops::RopeScaling rope_scaling_;
  mutable at::Tensor cos_sin_PD_;       // grows with the longest sequence seen
  mutable int64_t table_context_ = -1;  // the sequence that the table's frequencies are for (dynamic scaling)
};

}  // namespace moebius::nn
