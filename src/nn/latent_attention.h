// Multi-head latent attention: keys and values of all heads are products of one latent per token, beside it
// one rotary key that the heads share; queries may come from a latent of their own.
// (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1)
//
// Training computes the keys and values of every head (the expanded form). Generation keeps only the latent
// and the rotary key of each token and moves the products that would expand them to the query and to the
// result (the absorbed form): q_nope (W_k c) = (W_k^T q_nope) c, and sum_t p_t (W_v c_t) = W_v sum_t p_t c_t.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "nn/context_axis.h"
#include "nn/self_attention.h"
#include "nn/tensor_axis.h"

namespace moebius::nn {

struct LatentAttentionOptions {
  int64_t dim, num_heads;
  int64_t q_rank = 0;  // 0: queries straight from the residual stream
  int64_t kv_rank, nope_dim, rope_dim, value_dim;
  double norm_eps = 1e-6;     // of the latents' norms
  double score_factor = 1.0;  // on 1 / sqrt(nope_dim + rope_dim)
  bool bias = false;          // of the projections to the latents
  bool output_bias = false;
  double init_std = 0.02;
  double out_std = 0.02;                 // of the output projection
  const TensorAxis* axis = nullptr;      // that splits the heads; outlives the layer
  const ContextAxis* context = nullptr;  // that splits the tokens; outlives the layer
};

class LatentAttention final : public SelfAttention {
 public:
  LatentAttention(const LatentAttentionOptions& options, const std::string& prefix, ParamTable& params);

  at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                     const ops::Segments& documents, Discards* discards) const override;
  at::Tensor forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                            const at::Tensor& cos_sin_PD, int64_t layer, KvCache& cache) const override;

 private:
  struct Queries {
    at::Tensor nope_THn, rope_THr;  // the latter rotated
  };
  struct Latents {
    at::Tensor latent_TR, rope_T1r;  // normalised; rotated
  };
  Queries queries(const at::Tensor& x_TD, const at::Tensor& positions_T, const at::Tensor& cos_sin_PD) const;
  Latents latents(const at::Tensor& x_TD, const at::Tensor& positions_T, const at::Tensor& cos_sin_PD) const;
  // Queries, keys and values of all heads, (T, H (2 (nope + rope) + value)).
  at::Tensor expanded(const at::Tensor& x_TD, const at::Tensor& positions_T,
                      const at::Tensor& cos_sin_PD) const;
  at::Tensor output(const at::Tensor& y_TC) const;
  double scale() const;  // of the scores, 0 for the usual one

  LatentAttentionOptions options_;
  int64_t num_heads_;   // of this process
  Param* q_ = nullptr;  // (H (nope + rope), D), without compression
  Param* q_down_ = nullptr;
  Param* q_down_bias_ = nullptr;
  Param* q_down_norm_ = nullptr;
  Param* q_up_ = nullptr;     // (H (nope + rope), q_rank)
  Param* kv_down_ = nullptr;  // (kv_rank + rope, D): the latent, then the rotary key
  Param* kv_down_bias_ = nullptr;
  Param* kv_norm_ = nullptr;
  Param* kv_up_ = nullptr;  // (H (nope + value), kv_rank): per head keys, then values
  Param* out_ = nullptr;    // (D, H value)
  Param* out_bias_ = nullptr;
};

}  // namespace moebius::nn
