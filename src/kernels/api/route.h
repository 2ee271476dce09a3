// Routing: scores, selection and weights of K experts per token, and the order of rows by expert.
// All of it fp32 and int32; deterministic; no host synchronisation on a device; sizes do not depend on the
// routing.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

enum class Score : uint8_t { softmax, sigmoid };

struct RouteOptions {
  int64_t num_tokens;   // T
  int64_t num_experts;  // E, at most 1024
  int64_t top_k;        // K, at most 32
  Score score;
  bool softmax_after_topk;  // softmax over the K chosen logits instead of all E (softmax score only)
  bool normalize;           // weights divided by their sum over the K (plus 1e-20, for vanishing sigmoids)
  float scale;              // weights multiplied by this, last
  // Groups of E / num_groups neighbouring experts; the K come from the top_groups best groups, a group's
  // worth being its best selection score, or (group_top2) the sum of its two best; the lower of equal groups
  // first. The CUDA kernels know one group only.
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  bool group_top2 = false;
};

struct RouteForwardArgs {
  RouteOptions options;
  const float* logits;  // (T, E)
  const float* bias;    // (E) added to the scores for selection only, or null (loss-free balancing)
  float* probs;         // (T, E) out: softmax(logits), or sigmoid(logits) / sum over E of sigmoid(logits)
  // (T, K) out, by descending selection score, equal ones by index. The selection score is the logit itself
  // without a bias (the same order as the scores, free of their rounding), score + bias with one or where
  // groups are worth sums. Infinities and NaN (which counts as the lowest value) still give K different
  // experts.
  int32_t* experts;
  float* weights;  // (T, K) out
  float* lse;      // (T) out: logsumexp of the logits (for the z-loss)
};

// Gradient of the logits from three sources: the weights, a linear function of probs (balance loss), and
// lse^2.
struct RouteBackwardArgs {
  RouteOptions options;
  const float* logits;
  const float* probs;
  const int32_t* experts;
  const float* weights;
  const float* lse;
  const float* grad_weights;  // (T, K)
  const float* grad_probs;    // (S, E): gradient of probs, equal for all tokens of a segment; or null
  const int32_t* segments;    // (T) segment of each token, or null for all in segment 0
  const float* grad_lse_sq;   // pointer to one float: gradient of each token's lse^2; or null
  float* grad_logits;         // (T, E) out
};

// Per-segment sums that the balance losses and the load statistics need.
struct RouteStatsArgs {
  RouteOptions options;
  const float* probs;       // (T, E)
  const int32_t* experts;   // (T, K)
  const float* lse;         // (T)
  const int32_t* segments;  // (T) ascending, or null
  int64_t num_segments;     // S
  float* prob_sum;          // (S, E) out
  float* counts;            // (S, E) out: slots given to each expert
  float* entropy_sum;       // (1) out: sum over tokens of -sum_e p log p
  float* lse_sq_sum;        // (1) out
};

// Stable counting sort of the T*K slots (slot = t*K + k) by expert. With `capacity` >= 0, slots past the
// first `capacity` of an expert are dropped: they take no row. Rows: kept slots by (expert, slot); offsets[E]
// of them.
struct SortByExpertArgs {
  const int32_t* experts;  // (T*K) in [0, E)
  int64_t num_slots;       // T*K
  int64_t num_experts;     // E
  int64_t capacity;        // -1: none
  int32_t* order;          // (T*K) out: slot of each row; -1 past offsets[E]
  int32_t* inverse;        // (T*K) out: row of each slot; -1 when dropped
  int32_t* offsets;        // (E + 1) out: rows of expert e are [offsets[e], offsets[e+1])
};

}  // namespace moebius::kernels
