// Multi-token prediction: beside the next token, training predicts the one after it, through one more block.
//   h' = W [norm(h) ; norm(embedding(next token))],  its block and norm,  the model's own output layer
// with h the states that the model's output layer reads (after the final norm) and the embedding that of the
// model. (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.2, depth 1. The report leaves open on
// which side of the final norm h is taken: behind it is where the published modules are served from, and what
// Transformers 5.17 hands its MtpModel. The norm before the output layer is that of the published weights.)
// The block itself is the decoder's: it stands behind the others as layer `layers`.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/param.h"
#include "nn/tensor_axis.h"

namespace moebius::nn {

class MultiToken {
 public:
  // `axis` outlives the object.
  MultiToken(int64_t dim, double norm_eps, double init_std, ParamTable& params,
             const TensorAxis* axis = nullptr);

  // What the block reads, (T, D); outside the axis's regions.
  at::Tensor combine(const at::Tensor& hidden_TD, const at::Tensor& next_embedding_TD) const;
  const Param& final_norm() const { return final_norm_; }

  // For each position the next token and the target after its own, kernels::kIgnoredTarget where the document
  // ends before it. positions_T: from 0 in each document. Nothing is read on the host.
  struct Shifted {
    at::Tensor tokens_T, targets_T;
  };
  static Shifted shift(const at::Tensor& tokens_T, const at::Tensor& targets_T,
                       const at::Tensor& positions_T);

 private:
  double eps_;
  const TensorAxis* axis_;
  Param& hidden_norm_;
  Param& embedding_norm_;
  Param& projection_;  // (D, 2D): of the states, then of the embedding
  Param& final_norm_;
};

}  // namespace moebius::nn
