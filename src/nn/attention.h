// Causal self-attention of a block: fused projection, optional query/key norm, rotary positions, output
// projection. Grouped key/value heads (Ainslie et al. 2023, "GQA"): query head h uses key head h / (H / Hk).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "nn/kv_cache.h"
#include "nn/param.h"
#include "ops/attention.h"
#include "ops/rope.h"

namespace moebius::nn {

struct AttentionOptions {
  int64_t dim;
  int64_t num_heads, num_kv_heads, head_dim;
  kernels::QkNorm qk_norm = kernels::QkNorm::none;
  double norm_eps = 1e-5;
  double init_std = 0.02;  // of the fused projection
  double out_std = 0.02;   // of the output projection
};

class Attention {
 public:
  Attention(const AttentionOptions& options, const std::string& prefix, ParamTable& params);

  // x_TD: tokens of whole documents. cos_sin_PD: ops::rope_table.
  at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                     const ops::Segments& documents) const;

  // x_TD: the T tokens that follow those in the cache; no autograd. The caller advances the cache after the
  // last layer.
  at::Tensor forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                            const at::Tensor& cos_sin_PD, int64_t layer, KvCache& cache) const;

 private:
  at::Tensor projected(const at::Tensor& x_TD, const at::Tensor& positions_T,
                       const at::Tensor& cos_sin_PD) const;

  AttentionOptions options_;
  Param& qkv_;  // ((H + 2 Hk) d, D): query heads, key heads, value heads
  Param& out_;  // (D, H d)
  Param* q_norm_ = nullptr;
  Param* k_norm_ = nullptr;
};

}  // namespace moebius::nn
