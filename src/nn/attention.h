// Causal self-attention of a block: fused projection, optional biases, query/key norm, rotary positions, a
// window, sinks, output projection. Grouped key/value heads (Ainslie et al. 2023, "GQA"): query head h uses
// key head h / (H / Hk).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "nn/context_axis.h"
#include "nn/self_attention.h"
#include "nn/tensor_axis.h"
#include "ops/rope.h"

namespace moebius::nn {

struct AttentionOptions {
  int64_t dim;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t rotary_dim = 0;  // leading channels of a head that are rotated; 0: all
  int64_t window = 0;      // tokens that a query sees; 0: all before it
  bool bias = false;       // of the fused projection
  bool output_bias = false;
  bool sinks = false;  // a learned logit per query head in the softmax's denominator
  kernels::QkNorm qk_norm = kernels::QkNorm::none;
  double norm_eps = 1e-5;
  double init_std = 0.02;                // of the fused projection
  double out_std = 0.02;                 // of the output projection
  const TensorAxis* axis = nullptr;      // that splits the heads; outlives the layer
  const ContextAxis* context = nullptr;  // that splits the tokens; outlives the layer
};

class Attention final : public SelfAttention {
 public:
  Attention(const AttentionOptions& options, const std::string& prefix, ParamTable& params);

  at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                     const ops::Segments& documents, Discards* discards) const override;
  at::Tensor forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                            const at::Tensor& cos_sin_PD, int64_t layer, KvCache& cache) const override;

 private:
  at::Tensor projected(const at::Tensor& x_TD) const;
  // positions_T: of the tokens here.
  at::Tensor turned(const at::Tensor& projected_TC, const at::Tensor& positions_T,
                    const at::Tensor& cos_sin_PD) const;
  // All tokens' queries, keys and values of the heads whose attention is computed here.
  at::Tensor mixed_inputs(const at::Tensor& turned_TC, int64_t num_tokens) const;
  ops::AttentionShape shape() const;
  at::Tensor own_sinks() const;
  at::Tensor output(const at::Tensor& y_TC, int64_t num_tokens) const;

  AttentionOptions options_;
  int64_t num_heads_, num_kv_heads_;  // of this process's projections
  int64_t lines_;                     // of a grid of ranks, which deal these heads out for attention itself
  Param& qkv_;                        // ((H + 2 Hk) d, D): query heads, key heads, value heads
  Param& out_;                        // (D, H d)
  Param* qkv_bias_ = nullptr;
  Param* out_bias_ = nullptr;
  Param* sinks_ = nullptr;  // (H)
  Param* q_norm_ = nullptr;
  Param* k_norm_ = nullptr;
};

}  // namespace moebius::nn
