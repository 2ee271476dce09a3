// The routed experts of a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/field.h"

namespace moebius::config {

struct BalanceConfig {
  double aux_loss = 0.01;
  std::string aux_scope = "micro_batch";
  double z_loss = 0.0;
  double bias_rate = 0.0;
  std::string bias_rule = "sign";
};

template <class V>
void describe(V& v, BalanceConfig& c) {
  v.field("aux_loss", c.aux_loss, range(0, 100), "",
          "Coefficient of the load-balancing loss E * sum_e f_e * P_e (Switch/GShard form); 0 turns it off.");
  v.field("aux_scope", c.aux_scope, one_of({"micro_batch", "sequence", "model"}), "",
          "Over which tokens the loss counts load: all of a micro-batch in each layer, each sequence by "
          "itself, or all of a micro-batch in all layers together (one loss for the model, as Transformers "
          "computes it up to its factor top_k). With train.micro_batch = 0 a micro-batch is the whole batch, "
          "over all "
          "processes.");
  v.field("z_loss", c.z_loss, range(0, 100), "",
          "Coefficient of the mean squared logsumexp of the router logits (ST-MoE); 0 turns it off.");
  v.field(
      "bias_rate", c.bias_rate, range(0, 1), "",
      "Step of the loss-free bias: after each step bias += rate * sign(mean load - load), recentred to zero "
      "mean; used for selection only. 0 turns it off; 0.001 is the published value.");
  v.field(
      "bias_rule", c.bias_rule, one_of({"sign", "forecast"}), "",
      "What the bias answers: the sign of the last step's error, or a forecast of the load from its level "
      "and trend, to which it moves up to ten times as fast and comes to rest. On a GPU a forecast makes "
      "the host wait for each step.");
}

struct MoeConfig {
  int64_t experts = 0;
  int64_t top_k = 2;
  int64_t expert_dim = 256;
  int64_t shared_experts = 0;
  int64_t shared_dim = 0;
  bool shared_gate = false;
  std::vector<int64_t> dense_layers;
  std::string score = "softmax";
  std::string softmax_order = "before_topk";
  bool normalize_weights = true;
  double weight_scale = 1.0;
  double capacity_factor = 0.0;
  int64_t groups = 1;
  int64_t top_groups = 1;
  std::string group_score = "max";
  bool router_bias = false;
  bool selection_bias = false;
  bool expert_bias = false;
  std::string activation = "swiglu";
  double activation_alpha = 1.702;
  double activation_limit = 7.0;
  BalanceConfig balance;

  // The selection bias exists.
  bool has_selection_bias() const { return selection_bias || balance.bias_rate > 0; }
  // Hidden width of the shared experts together; 0: none.
  int64_t shared_width() const {
    return shared_experts == 0 ? 0 : (shared_dim > 0 ? shared_dim : shared_experts * expert_dim);
  }
};

template <class V>
void describe(V& v, MoeConfig& c) {
  v.field("experts", c.experts, range(0, 1024), "",
          "Routed experts per MoE layer; 0 makes every layer dense.");
  v.field("top_k", c.top_k, range(1, 32), "", "Experts that each token is sent to.");
  v.field("expert_dim", c.expert_dim, at_least(1), "", "Hidden width of one expert.");
  v.field("shared_experts", c.shared_experts, range(0, 64), "",
          "Experts that every token passes, built as one dense SwiGLU of this many times expert_dim.");
  v.field("shared_dim", c.shared_dim, at_least(0), "",
          "Hidden width of that SwiGLU; 0: shared_experts * expert_dim.");
  v.field("shared_gate", c.shared_gate, any(), "",
          "Multiply the shared experts' output by a learned sigmoid of the token (Qwen2-MoE).");
  v.field("dense_layers", c.dense_layers, at_least(0), "",
          "Layers (from 0) that get a dense FFN instead of experts.");
  v.field("score", c.score, one_of({"softmax", "sigmoid"}), "", "How router logits become scores.");
  v.field("softmax_order", c.softmax_order, one_of({"before_topk", "after_topk"}), "",
          "Whether the softmax runs over all experts or over the chosen ones.");
  v.field("normalize_weights", c.normalize_weights, any(), "", "Divide the chosen weights by their sum.");
  v.field("weight_scale", c.weight_scale, range(0, 1000), "", "Factor on the chosen weights, applied last.");
  v.field(
      "capacity_factor", c.capacity_factor, range(0, 1000), "",
      "Rows an expert accepts, as a multiple of the mean load; tokens beyond it are dropped. 0: never drop.");
  v.field("groups", c.groups, range(1, 1024), "",
          "Groups of neighbouring experts; a token's experts come from top_groups of them. Must divide "
          "experts.");
  v.field("top_groups", c.top_groups, range(1, 1024), "", "Groups that a token's experts come from.");
  v.field("group_score", c.group_score, one_of({"max", "top2_sum"}), "",
          "What a group is chosen by: its best score (DeepSeek-V2), or the sum of its best two, selection "
          "bias included (DeepSeek-V3, GLM-4.5).");
  v.field("router_bias", c.router_bias, any(), "", "Learned bias of the router logits (gpt-oss).");
  v.field(
      "selection_bias", c.selection_bias, any(), "",
      "Keep a selection bias (added to the scores for selection only) even though balance.bias_rate is 0.");
  v.field("expert_bias", c.expert_bias, any(), "", "Learned biases of each expert's products (gpt-oss).");
  v.field("activation", c.activation, one_of({"swiglu", "clamped_swiglu"}), "",
          "Activation of the routed experts. clamped_swiglu (gpt-oss): (up + 1) * gate * sigmoid(alpha * "
          "gate), gate at most activation_limit, up within plus and minus that.");
  v.field("activation_alpha", c.activation_alpha, range(0, 1000), "", "alpha of clamped_swiglu.");
  v.field("activation_limit", c.activation_limit, range(0, 1e6), "", "Limit of clamped_swiglu.");
  v.section("balance", c.balance, "How expert load is kept even.");
}

}  // namespace moebius::config
