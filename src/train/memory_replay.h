// A training step replayed on sizes instead of tensors, for the memory plan.
//
// A function of Replay allocates and frees in the order of the operator or layer whose name it has. What an
// operator keeps for the backward pass goes into the Kept of its node; everything else lives as long as the
// variable that holds it. Shapes: T tokens of a micro-batch, R rows of the experts (T*K), D model width, C
// width of the fused projection, H query heads, Hk key heads, d head width, F hidden width, E experts, V
// vocabulary.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config/train_config.h"
#include "nn/param.h"
#include "nn/recompute.h"
#include "train/memory_tape.h"

namespace moebius::train::memory {

using Class = Tape::Class;
using Tensor = std::shared_ptr<Block>;
using Kept = std::vector<Tensor>;

constexpr Class kActivations = &MemoryByClass::activations_bytes;
constexpr Class kGradients = &MemoryByClass::gradients_bytes;
constexpr Class kWorkspace = &MemoryByClass::workspace_bytes;

// Several ranks see parts of the batch: parallel.dp, parallel.fsdp and parallel.cp say how many. (What they
// leave open counts as one.)
bool is_shared(const config::RunConfig& config);
// Ranks that share what parallel.zero_stage splits.
int64_t shard_ranks(const config::RunConfig& config);

// What the nodes of one dense feed-forward keep.
struct DenseNodes {
  Kept up, swiglu, down;
};

// What the nodes of one block keep.
struct BlockNodes {
  Kept recompute;  // of the whole block: nothing else is filled
  Kept attention_norm, qkv, latents, rope, attention, out, ffn_norm;
  Kept router, route, experts;
  Tensor gate_up;  // of the experts; null when it is computed again
  DenseNodes dense;
  Kept shared_gate, multi_token;
  Kept attention_discards, ffn_discards;  // nn::Discards of the halves
};

// The residual stream and what is to be added to it, or the gradients of both.
struct Stream {
  Tensor x, delta;
};

class Replay {
 public:
  Replay(const config::RunConfig& config, const nn::ParamTable& params, bool on_cuda);

  MemoryPlan run();

 private:
  void allocate_state(const config::RunConfig& config, const nn::ParamTable& params);
  void allocate_shared(const config::RunConfig& config, const nn::ParamTable& params);
  void micro_batch_step();
  Stream forward(std::vector<BlockNodes>& nodes);
  Stream multi_token(const Tensor& x, BlockNodes& nodes);
  Stream multi_token_backward(BlockNodes& nodes);
  void backward(std::vector<BlockNodes>& nodes, Stream grad);

  Stream block(int64_t layer, const Stream& in, BlockNodes* nodes);
  Stream block_backward(int64_t layer, BlockNodes& nodes, Stream grad);
  Stream recomputed_block_backward(int64_t layer, BlockNodes& nodes, const Stream& grad);
  Tensor fused_projection(const Tensor& x, BlockNodes* nodes);
  Tensor fused_projection_backward(const std::string& prefix, BlockNodes& nodes, Tensor grad_rotated);
  Tensor latent_projection(const Tensor& x, BlockNodes* nodes);
  Tensor latent_projection_backward(const std::string& prefix, BlockNodes& nodes, Tensor grad_qkv);
  Tensor attention(const Tensor& qkv, BlockNodes* nodes);
  Tensor attention_backward();
  Tensor ring_backward();
  void add_score_blocks(Kept& ring);
  bool has_windows() const { return model_.sliding_window > 0; }
  int64_t part_width() const { return key_width_ + value_width_; }
  Tensor feed_forward(int64_t layer, const Tensor& x, BlockNodes* nodes);
  Tensor feed_forward_backward(int64_t layer, BlockNodes& nodes);
  Tensor dense(int64_t width, const Tensor& x, DenseNodes* nodes, Kept* discards);
  Tensor dense_backward(const std::string& prefix, int64_t width, DenseNodes& nodes);
  Tensor experts(const Tensor& x, const Kept& routing, BlockNodes* nodes, bool keeps_up);
  Tensor experts_backward(const std::string& prefix, BlockNodes& nodes);
  Tensor biased_experts(const Tensor& x, const Kept& routing, BlockNodes* nodes, bool keeps_up);
  Tensor biased_experts_backward(const std::string& prefix, BlockNodes& nodes);
  void activation_parts(int64_t matrices);
  void router_backward(const std::string& prefix, BlockNodes& nodes);
  struct LossGrads {
    Tensor hidden, weight;
  };
  // `further`: beside the gradients of a first loss.
  LossGrads loss(bool further = false);

  // A tensor of the model's precision, of fp32 or of 32-bit integers.
  Tensor make(Class klass, int64_t elements) { return bytes(klass, elements * element_); }
  Tensor make32(Class klass, int64_t elements) { return bytes(klass, elements * 4); }
  Tensor bytes(Class klass, int64_t count) { return std::make_shared<Block>(tape_, klass, count); }

  // The gradient that an operator's backward makes for a weight, and what becomes of it once that returns:
  // the first one stays, later ones are added to it.
  Tensor weight_grad(const std::string& name) {
    return bytes(grads_.count(name) > 0 ? kWorkspace : kGradients, param_bytes_.at(name));
  }
  void accumulate(const std::string& name, const Tensor& grad) { grads_.emplace(name, grad); }
  void accumulate_new(const std::string& name) { accumulate(name, weight_grad(name)); }
  // The gradients of small parameters whose names begin so: those that no function above has accumulated.
  void accumulate_rest(const std::string& prefix);

  nn::Recompute policy(int64_t layer) const {
    return nn::recompute_of_layer(recompute_, recompute_layers_, layer);
  }
  bool is_full(int64_t layer) const { return policy(layer) == nn::Recompute::full; }
  // Makes again what a half of a block has discarded.
  void remake(Kept& discards) {
    for (const Tensor& each : discards) each->remake(kWorkspace);
    discards.clear();
  }
  static void discard(const Kept& discards) {
    for (const Tensor& each : discards) each->discard();
  }

  // What the products of a grid of tensor ranks take beside their results (parallel/summa.h): blocks on their
  // way, and sums in fp32. weight: elements of this rank's block; wide: its heads' or hidden units' width.
  // Nothing without a grid.
  void first_product(int64_t weight, int64_t wide);
  void first_product_backward(int64_t weight);
  void second_product(int64_t weight);
  void second_product_backward(int64_t weight, int64_t wide);

  bool is_moe(int64_t layer) const;
  bool plain_experts() const { return !model_.moe.expert_bias && model_.moe.activation == "swiglu"; }
  int64_t num_rows() const { return num_tokens_ * model_.moe.top_k; }
  int64_t model_elements() const { return num_tokens_ * stream_dim_; }
  // In a region, whose tokens have their whole width.
  int64_t region_elements() const { return num_tokens_ * dim_; }

  const config::ModelConfig model_;  // what a rank computes of it
  const nn::Recompute recompute_;
  const int64_t recompute_layers_;
  const bool on_cuda_;
  const int64_t element_;        // bytes
  const int64_t side_;           // of the grid of tensor ranks, whose rows have shares of the tokens; 1: none
  const int64_t context_ranks_;  // that share num_tokens_ of each of them
  const int64_t num_tokens_, num_micro_, dim_, stream_dim_, query_width_, key_width_, value_width_,
      out_width_;
  Tape tape_;
  std::map<std::string, int64_t> param_bytes_;  // of those with a gradient
  Kept state_;                                  // lives as long as the run
  std::map<std::string, Tensor> grads_;
};

}  // namespace moebius::train::memory
