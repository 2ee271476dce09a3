// The feed-forward half of a block, dense or routed, behind one interface: the decoder does not know experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/param.h"
#include "nn/recompute.h"
#include "nn/tensor_axis.h"

namespace moebius::nn {

// Told what a routed layer did with a micro-batch; tensors stay on their device and are detached.
class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;
  // counts_E fp32: slots chosen per expert before dropping; entropy: fp32 scalar, mean over tokens, nats;
  // offsets_E1 int32: the last entry is the number of rows that were kept; num_slots: T * K.
  virtual void observe(int64_t layer, const at::Tensor& counts_E, const at::Tensor& entropy,
                       const at::Tensor& offsets_E1, int64_t num_slots) = 0;
  // Every single decision: logits_TE fp32, experts_TK int32, weights_TK fp32 (the factor on each output).
  virtual void decided(int64_t /*layer*/, const at::Tensor& /*logits_TE*/, const at::Tensor& /*experts_TK*/,
                       const at::Tensor& /*weights_TK*/) {}
};

// Where several processes share one micro-batch, or each of its sequences: sums over them, so that the
// balance loss is that of all tokens. Implemented in parallel/load_sum.h.
class LoadSum {
 public:
  virtual ~LoadSum() = default;
  virtual int num_ranks() const = 0;
  // Counts of this rank, of one layer or several, summed; a new tensor without gradient.
  virtual at::Tensor sum(const at::Tensor& counts) const = 0;
};

struct FeedForwardContext {
  int64_t num_tokens = 0;    // of all that the layer sees; only needed with a tensor axis
  at::Tensor sequence_of_T;  // int32 ascending sequence number of each token; undefined for one sequence
  int64_t num_sequences = 1;
  // Where given, less is kept for the backward pass and computed again there: what a layer adds to it, and
  // what its operators recompute by themselves.
  Discards* discards = nullptr;
  bool with_losses = false;  // balance losses are wanted
  bool may_drop = true;      // a capacity limit applies (not in generation)
  RoutingObserver* observer = nullptr;
  const LoadSum* load_sum = nullptr;      // null: the micro-batch is this process's alone
  const LoadSum* sequence_sum = nullptr;  // null: its sequences are
};

struct FeedForwardResult {
  at::Tensor y_TD;
  at::Tensor balance_loss;  // fp32 scalar with its coefficients applied; undefined when there is none
  // Where the balance loss takes more than this layer's tokens here (load balanced over all layers together,
  // or a micro-batch that processes share): over these tokens the sums of the router's probabilities
  // (differentiable) and the slots given to each expert. Undefined otherwise.
  // (S, E): S segments, one, or the sequences of a micro-batch that are balanced by themselves.
  at::Tensor prob_sum_SE, counts_SE;
};

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  virtual FeedForwardResult forward(const at::Tensor& x_TD, const FeedForwardContext& context) const = 0;
};

struct DenseOptions {
  int64_t dim, hidden;
  double init_std = 0.02;            // of gate and up
  double out_std = 0.02;             // of down
  bool bias = false;                 // of all three
  const TensorAxis* axis = nullptr;  // that splits the hidden units; outlives the layer
};

// SwiGLU with the hidden width F: y = W_down (silu(W_gate x) * (W_up x)). Rows 2f and 2f+1 of gate_up are
// gate and up of unit f. (Shazeer 2020)
class DenseFeedForward final : public FeedForward {
 public:
  DenseFeedForward(const DenseOptions& options, const std::string& prefix, ParamTable& params);
  FeedForwardResult forward(const at::Tensor& x_TD, const FeedForwardContext& context) const override;

  // Between enter_pair() and leave_pair() (nn/linear.h): of all tokens the summand that this process's hidden
  // units give, without the bias of the output; on a grid all of it.
  at::Tensor summand(const at::Tensor& x_TD, Discards* discards) const;

 private:
  const TensorAxis* axis_;
  Param& gate_up_;  // (2F, D)
  Param& down_;     // (D, F)
  Param* gate_up_bias_ = nullptr;
  Param* down_bias_ = nullptr;
};

}  // namespace moebius::nn
