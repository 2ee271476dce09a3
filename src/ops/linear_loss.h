// Output layer and cross-entropy in one operator over chunks of tokens: the (T, V) logits never exist whole,
// and the gradients of both inputs are made in the same pass, so nothing of size V x T is kept or recomputed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "kernels/api/loss.h"

namespace moebius::ops {

// This process's rows of an output layer that several hold together (Shoeybi et al. 2019, "Megatron-LM",
// section 3: of each token only two numbers per rank are exchanged).
struct VocabularySplit {
  int64_t begin = 0;  // token of the first row here
  int64_t vocab = 0;  // rows of all; no rank has more than ceil(vocab / num_ranks)
  int num_ranks = 1;
  std::function<at::Tensor(const at::Tensor&)> gather;  // values of all ranks, (ranks, …), in their order
};

// h_TD, weight_VD of one dtype; targets_T int64 with kernels::kIgnoredTarget for "no loss here".
// Returns the sum of the token losses times `scale` (fp32 scalar, differentiable in h and weight); pass
// scale = 1 / (number of targets of the whole optimizer step). `token_loss_T`, when not null, receives the
// fp32 unscaled losses (detached). No gradient is computed when grad mode is off. With a split, which all
// ranks call with the same h and targets, the losses are those over the whole vocabulary on every rank, and
// the gradient of h is this rank's summand.
at::Tensor linear_cross_entropy(const at::Tensor& h_TD, const at::Tensor& weight_VD,
                                const at::Tensor& targets_T, double scale, at::Tensor* token_loss_T = nullptr,
                                const VocabularySplit* split = nullptr);

// Tokens whose logits are held at once, for memory plans.
int64_t loss_chunk_rows(int64_t num_tokens, int64_t vocab, int64_t element_bytes, bool on_cpu);

}  // namespace moebius::ops
