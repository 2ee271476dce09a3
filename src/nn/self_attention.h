// The attention half of a block behind one interface: the decoder does not know its form.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "config/model_config.h"
#include "nn/context_axis.h"
#include "nn/kv_cache.h"
#include "nn/param.h"
#include "nn/recompute.h"
#include "nn/tensor_axis.h"
#include "ops/attention.h"
#include "ops/rope_scaling.h"

namespace moebius::nn {

class SelfAttention {
 public:
  virtual ~SelfAttention() = default;

  // x_TD: tokens of whole documents, as the model's tensor axis leaves them; with a context axis those of
  // them that are here. cos_sin_PD: ops::rope_table of
  // the rotated channels. `discards`, where given, gets what can be made again cheaply.
  virtual at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& positions_T,
                             const at::Tensor& cos_sin_PD, const ops::Segments& documents,
                             Discards* discards) const = 0;

  // x_TD: the T tokens that follow those in the cache; no autograd. The caller advances the cache after the
  // last layer.
  virtual at::Tensor forward_cached(const at::Tensor& x_TD, const at::Tensor& positions_T,
                                    const at::Tensor& cos_sin_PD, int64_t layer, KvCache& cache) const = 0;
};

// The attention of a layer as the config says; declares its parameters. The axes outlive it.
std::unique_ptr<SelfAttention> make_attention(const config::ModelConfig& config, int64_t layer,
                                              const std::string& prefix, ParamTable& params,
                                              const TensorAxis* axis = nullptr,
                                              const ContextAxis* context = nullptr);

// A cache for `capacity` tokens of the config's form: keys and values of this process's heads, or latents.
KvCache make_kv_cache(const config::ModelConfig& config, int64_t capacity, const at::TensorOptions& options,
                      const TensorAxis* axis = nullptr, KvFormat format = KvFormat::model);

ops::RopeScaling rope_scaling(const config::RopeConfig& config);

}  // namespace moebius::nn
