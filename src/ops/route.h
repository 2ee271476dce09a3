// Routing of tokens to experts, with autograd through the weights and the balance losses.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/api/route.h"

namespace moebius::ops {

struct RouteOptions {
  int64_t top_k = 2;
  kernels::Score score = kernels::Score::softmax;
  bool softmax_after_topk = false;
  bool normalize = true;
  double scale = 1.0;
  // Rows one expert accepts; -1: all (dropless).
  int64_t capacity = -1;
  // Experts come from the top_groups best of num_groups groups, see kernels::RouteOptions.
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  bool group_top2 = false;
  // Tokens are counted for the balance loss per segment (sequence) when segments are given to route().
};

// What the experts, the losses and the statistics need to know. Sizes never depend on the choices (the
// products accept an order_R without its unused tail).
struct Routing {
  at::Tensor weights_TK;  // fp32, differentiable
  at::Tensor experts_TK;  // int32
  at::Tensor order_R;     // int32, slot (t*K + k) of each row, sorted by expert; -1 in the unused tail
  at::Tensor inverse_R;   // int32, row of each slot; -1 when dropped
  at::Tensor offsets_E1;  // int32, rows of expert e are [offsets[e], offsets[e+1])
  at::Tensor aux_loss;  // fp32 scalar, differentiable: E * sum_e f_e * P_e, mean over segments (1 when even)
  at::Tensor z_loss;    // fp32 scalar, differentiable: mean over tokens of logsumexp(logits)^2
  at::Tensor counts_E;  // fp32, slots chosen per expert before dropping (detached)
  at::Tensor entropy;   // fp32 scalar, mean entropy of the router probabilities in nats (detached)
  at::Tensor prob_sum_SE;  // fp32, differentiable: sum of the router probabilities over each segment's tokens
};

// logits_TE fp32; bias_E fp32 or undefined, added for selection only; segments_T int32 ascending segment
// number of each token, or undefined for one segment; num_segments their count. Balance loss: Fedus et al.
// 2021 (Switch) with f_e = share of the T*K slots; z-loss: Zoph et al. 2022 (ST-MoE); selection bias: Wang et
// al. 2024 (loss-free balancing).
Routing route(const at::Tensor& logits_TE, const at::Tensor& bias_E, const at::Tensor& segments_T,
              int64_t num_segments, const RouteOptions& options);

// Slots (t*K + k) in the order of their experts, as in Routing.
struct SlotOrder {
  at::Tensor order_R, inverse_R, offsets_E1;
};

// Stable order of the slots of experts_TK (int32, in [0, num_experts)); those past the first `capacity` of an
// expert (-1: none) are dropped.
SlotOrder sort_by_expert(const at::Tensor& experts_TK, int64_t num_experts, int64_t capacity = -1);

// The choice of experts (T, K) int32 by libtorch's operators, for devices whose kernel knows no groups: by
// descending selection score, equal ones by index, without host synchronisation.
at::Tensor choose_in_groups(const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const RouteOptions& options);

}  // namespace moebius::ops
