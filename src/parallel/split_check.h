// For tests of decoders that several ranks hold together: a small model, one pass through it, and the
// comparison with one process.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/scalar_tensor.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/concat.h"
#include "nn/decoder.h"
#include "nn/layer_check.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "ops/linear_loss.h"

namespace moebius::parallel {

inline constexpr int64_t kVocab = 51;  // no tp divides it

inline config::ModelConfig split_model() {
  config::ModelConfig model;
  model.layers = 3;
  model.dim = 24;
  model.heads = 8;
  model.kv_heads = 4;
  model.head_dim = 6;
  model.ffn_dim = 40;
  model.vocab = kVocab;
  model.init_std = 0.3;
  model.moe.experts = 6;
  model.moe.top_k = 2;
  model.moe.expert_dim = 12;
  model.moe.dense_layers = {1};
  return model;
}

// A change of split_model() that makes another kind of layer.
struct SplitForm {
  std::string name;
  std::function<void(config::ModelConfig&)> change;
};

// Forms that can be split in any way, and those of `more`.
inline std::vector<SplitForm> split_forms(const std::vector<SplitForm>& more) {
  using Model = config::ModelConfig;
  std::vector<SplitForm> forms{
      {"normed_heads",
       [](Model& m) {
         m.qk_norm = "head";
         m.moe.balance.aux_loss = 0.02;
         m.moe.balance.z_loss = 0.01;
       }},
      {"biases_and_sinks",
       [](Model& m) {
         m.attention_bias = m.attention_output_bias = m.attention_sinks = m.ffn_bias = true;
         m.sliding_window = 4;
         m.moe.router_bias = m.moe.expert_bias = true;
         m.moe.softmax_order = "after_topk";
         m.moe.activation = "clamped_swiglu";
       }},
      {"shared_experts_with_a_gate",
       [](Model& m) {
         m.tied_embeddings = true;
         m.moe.shared_experts = 1;
         m.moe.shared_dim = 20;
         m.moe.shared_gate = true;
         m.moe.balance.aux_loss = 0.02;
         m.moe.balance.aux_scope = "model";
       }},
  };
  forms.insert(forms.end(), more.begin(), more.end());
  return forms;
}

// Values that are random everywhere, biases and norms too, and alike for every split.
inline void fill_split(nn::ParamTable& params, at::ScalarType dtype = at::kFloat) {
  params.allocate(dtype, at::kCPU);
  params.initialise(3);
  const at::NoGradGuard no_grad;
  int64_t number = 0;
  for (nn::Param& param : params.params()) {
    ++number;
    if (param.spec.init.kind == nn::Init::Kind::normal) continue;
    const at::Tensor noise = at::arange(param.spec.num_elements(), at::kFloat)
                                 .mul_(0.7 + 0.01 * static_cast<double>(number))
                                 .sin_()
                                 .view(param.spec.dims);
    const at::Tensor own = at::empty_like(param.value.detach());
    nn::copy_from_whole(param.slice, noise, own);
    param.value.add_(own, 0.2);
  }
}

inline nn::TokenBatch split_batch(const std::vector<int32_t>& lengths) {
  nn::TokenBatch batch = nn::document_batch(lengths, kVocab);
  batch.targets_T[2] = kernels::kIgnoredTarget;
  return batch;
}

class Choices final : public nn::RoutingObserver {
 public:
  void observe(int64_t, const at::Tensor& counts_E, const at::Tensor& entropy, const at::Tensor& offsets_E1,
               int64_t num_slots) override {
    counts.push_back(counts_E.clone());
    entropies.push_back(entropy.clone());
    slots.push_back({num_slots, offsets_E1[-1].item<int64_t>()});
  }
  void decided(int64_t, const at::Tensor&, const at::Tensor& experts_TK, const at::Tensor&) override {
    experts.push_back(experts_TK.clone());
  }
  std::vector<at::Tensor> experts, counts, entropies;
  std::vector<std::vector<int64_t>> slots;  // all and those kept
};

struct Passed {
  double loss = 0;
  at::Tensor token_loss_T, next_logits_V;
  std::vector<at::Tensor> experts, counts, entropies;
  std::vector<std::vector<int64_t>> slots;
  std::map<std::string, at::Tensor> grads;
};

inline Passed pass_through(nn::Decoder& decoder, const nn::TokenBatch& batch, nn::Recompute recompute) {
  Passed passed;
  Choices choices;
  nn::ForwardOptions options;
  options.recompute = recompute;
  options.with_losses = options.with_mtp = true;
  options.observer = &choices;
  const nn::DecoderOutput output = decoder.forward(batch, options);
  at::Tensor loss = decoder.loss(output.hidden_TD, batch.targets_T, 0.1, &passed.token_loss_T);
  if (output.balance_loss.defined()) loss = loss + output.balance_loss;
  if (output.mtp_hidden_TD.defined())
    loss = loss + decoder.loss(output.mtp_hidden_TD, output.mtp_targets_T, 0.03);
  loss.backward();
  passed.loss = loss.item<double>();
  passed.experts = choices.experts;
  passed.counts = choices.counts;
  passed.entropies = choices.entropies;
  passed.slots = choices.slots;
  for (nn::Param& param : decoder.params().params()) {
    if (param.spec.is_buffer) continue;
    MOEBIUS_CHECK(param.value.grad().defined(), param.spec.name, " has no gradient");
    passed.grads[param.spec.name] = param.value.grad().clone();
  }
  nn::KvCache cache = decoder.make_cache(8);
  decoder.next_logits(batch.tokens_T.narrow(0, 0, 5), cache);
  passed.next_logits_V = decoder.next_logits(batch.tokens_T.narrow(0, 5, 1), cache);
  return passed;
}

// Both sides are in `dtype`, and either may be as far from the truth as the table allows.
inline void expect_close(const std::string& what, const at::Tensor& got, const at::Tensor& want,
                         at::ScalarType dtype = at::kFloat) {
  EXPECT_LE(ops::cases::normalised_error(got, want),
            2 * ops::cases::tolerance(ops::cases::OpClass::layer, dtype))
      << what;
}

// What rank `rank` has of the pass against that of one process: `tokens` are those that it routes. `decoders`
// and `got` of all ranks.
inline void expect_like_whole(const Passed& want, const std::vector<std::unique_ptr<nn::Decoder>>& decoders,
                              const std::vector<Passed>& got, size_t rank, const nn::Range& tokens,
                              at::ScalarType dtype = at::kFloat) {
  SCOPED_TRACE(concat("rank ", rank, " of ", got.size()));
  const Passed& own = got[rank];
  expect_close("loss", at::scalar_tensor(own.loss), at::scalar_tensor(want.loss), dtype);
  expect_close("token losses", own.token_loss_T, want.token_loss_T, dtype);
  expect_close("logits with a cache", own.next_logits_V, want.next_logits_V, dtype);
  ASSERT_EQ(own.experts.size(), want.experts.size());
  for (size_t i = 0; i < own.experts.size(); ++i)
    EXPECT_TRUE(at::equal(own.experts[i], want.experts[i].narrow(0, tokens.begin, tokens.count)))
        << "choice " << i;
  ASSERT_EQ(own.counts.size(), want.counts.size());
  for (size_t i = 0; i < own.counts.size(); ++i) {
    EXPECT_TRUE(at::equal(own.counts[i], want.counts[i])) << "load " << i;
    expect_close("entropy", own.entropies[i], want.entropies[i]);
    EXPECT_EQ(own.slots[i], want.slots[i]);
  }
  for (const nn::Param& param : decoders[rank]->params().params()) {
    if (param.spec.is_buffer) continue;
    const at::Tensor slice = at::empty(param.local_dims());
    nn::copy_from_whole(param.slice, want.grads.at(param.spec.name), slice);
    const at::Tensor& mine = own.grads.at(param.spec.name);
    expect_close("gradient of " + param.spec.name, mine, slice, dtype);
    // What several ranks hold stays the same on all of them, bit for bit.
    for (size_t other = 0; other < rank; ++other)
      if (decoders[other]->params().find(param.spec.name)->slice == param.slice) {
        EXPECT_TRUE(at::equal(mine, got[other].grads.at(param.spec.name))) << param.spec.name;
        break;
      }
  }
}

}  // namespace moebius::parallel
