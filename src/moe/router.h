// The router: fp32 logits of a linear layer, and the choice of experts that follows from them (ops/route.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "config/model_config.h"
#include "nn/param.h"
#include "nn/tensor_axis.h"
#include "ops/route.h"

namespace moebius::moe {

// logits_TE = x_TD weight_ED^T in fp32, with autograd. x is fp32 or bf16 and is kept for the backward pass as
// it came; the weight is fp32.
at::Tensor router_logits(const at::Tensor& x_TD, const at::Tensor& weight_ED);

class Router {
 public:
  Router(const config::ModelConfig& config, const std::string& prefix, nn::ParamTable& params);

  // sequence_of_T, num_sequences: segments of the balance loss, see ops::route. may_drop: the capacity limit
  // applies. `logits_TE`, when given, gets the logits that were decided on. With an axis x is in its region
  // and the same on the ranks of a line.
  ops::Routing route(const at::Tensor& x_TD, const at::Tensor& sequence_of_T, int64_t num_sequences,
                     bool may_drop, at::Tensor* logits_TE = nullptr,
                     const nn::TensorAxis* axis = nullptr) const;

  // Balance losses are of each sequence by itself.
  bool is_per_sequence(const at::Tensor& sequence_of_T) const {
    return config_.balance.aux_scope == "sequence" && sequence_of_T.defined();
  }

 private:
  config::MoeConfig config_;
  nn::Param& weight_;                // (E, D)
  nn::Param* logit_bias_ = nullptr;  // (E): added to the logits (gpt-oss)
  nn::Param* bias_ = nullptr;        // (E) buffer: added to the scores for selection only
};

}  // namespace moebius::moe
