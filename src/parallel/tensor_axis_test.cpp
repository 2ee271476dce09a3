#include "parallel/tensor_axis.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "config/validate.h"
#include "moe/moe_feed_forward.h"
#include "nn/layer_check.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "ops/linear_loss.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

using ops::cases::OpClass;

constexpr int64_t kVocab = 51;  // no tp divides it

config::ModelConfig split_model() {
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

struct SplitForm {
  std::string name;
  std::function<void(config::ModelConfig&)> change;
};

std::vector<SplitForm> split_forms() {
  using Model = config::ModelConfig;
  return {
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
      {"latents_and_further_tokens",
       [](Model& m) {
         m.attention = "mla";
         m.mla.q_rank = 14;
         m.mla.kv_rank = 10;
         m.mla.nope_dim = 8;
         m.mla.rope_dim = 4;
         m.mla.value_dim = 6;
         m.attention_bias = true;
         m.mtp.depth = 1;
         m.moe.score = "sigmoid";
         m.moe.shared_experts = 2;
         m.moe.balance.bias_rate = 0.001;
       }},
  };
}

// Values that are random everywhere, biases and norms too, and alike for every split.
void fill_split(nn::ParamTable& params) {
  params.allocate(at::kFloat, at::kCPU);
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

nn::TokenBatch split_batch(const std::vector<int32_t>& lengths) {
  nn::TokenBatch batch = nn::document_batch(lengths, kVocab);
  batch.targets_T[2] = kernels::kIgnoredTarget;
  return batch;
}

class Choices final : public nn::RoutingObserver {
 public:
  void observe(int64_t, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t) override {}
  void decided(int64_t, const at::Tensor&, const at::Tensor& experts_TK, const at::Tensor&) override {
    experts.push_back(experts_TK.clone());
  }
  std::vector<at::Tensor> experts;
};

struct Passed {
  double loss = 0;
  at::Tensor token_loss_T, next_logits_V;
  std::vector<at::Tensor> experts;
  std::map<std::string, at::Tensor> grads;
};

Passed pass_through(nn::Decoder& decoder, const nn::TokenBatch& batch, nn::Recompute recompute) {
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

// Both sides are in fp32, and either may be as far from the truth as the table allows.
void expect_close(const std::string& what, const at::Tensor& got, const at::Tensor& want) {
  EXPECT_LE(ops::cases::normalised_error(got, want), 2 * ops::cases::tolerance(OpClass::layer, at::kFloat))
      << what;
}

void expect_like_one_process(const config::ModelConfig& model, int ranks, bool sequence,
                             nn::Recompute recompute) {
  config::validate_model(model);
  check_tensor_split(model, ranks);
  const nn::TokenBatch batch = split_batch({9, 4, 6});  // 19 tokens: no tp divides them
  const auto whole = moe::make_decoder(model);
  fill_split(whole->params());
  const Passed want = pass_through(*whole, batch, recompute);
  std::vector<Passed> got(static_cast<size_t>(ranks));
  std::vector<std::unique_ptr<nn::Decoder>> decoders(static_cast<size_t>(ranks));
  ThreadGroup group(ranks, "tp");
  group.run([&](Communicator& comm) {
    const auto rank = static_cast<size_t>(comm.rank());
    decoders[rank] = moe::make_decoder(model, nullptr, make_tensor_axis(comm, sequence));
    decoders[rank]->params().split({.tp = {ranks, comm.rank()}});
    fill_split(decoders[rank]->params());
    got[rank] = pass_through(*decoders[rank], batch, recompute);
  });
  for (int rank = 0; rank < ranks; ++rank) {
    SCOPED_TRACE(concat("rank ", rank, " of ", ranks));
    const Passed& own = got[static_cast<size_t>(rank)];
    expect_close("loss", at::scalar_tensor(own.loss), at::scalar_tensor(want.loss));
    expect_close("token losses", own.token_loss_T, want.token_loss_T);
    expect_close("logits with a cache", own.next_logits_V, want.next_logits_V);
    ASSERT_EQ(own.experts.size(), want.experts.size());
    for (size_t i = 0; i < own.experts.size(); ++i)
      EXPECT_TRUE(at::equal(own.experts[i], want.experts[i])) << "choice " << i;
    for (const nn::Param& param : decoders[static_cast<size_t>(rank)]->params().params()) {
      if (param.spec.is_buffer) continue;
      const at::Tensor slice = at::empty(param.local_dims());
      nn::copy_from_whole(param.slice, want.grads.at(param.spec.name), slice);
      expect_close("gradient of " + param.spec.name, own.grads.at(param.spec.name), slice);
      // What all ranks hold stays the same on all of them, bit for bit.
      const at::Tensor &mine = own.grads.at(param.spec.name), &first = got[0].grads.at(param.spec.name);
      EXPECT_TRUE(!param.slice.is_whole() || at::equal(mine, first)) << param.spec.name;
    }
  }
}

TEST(TensorAxis, every_form_of_a_decoder_is_that_of_one_process) {
  for (const SplitForm& form : split_forms())
    for (const bool sequence : {false, true}) {
      SCOPED_TRACE(form.name + (sequence ? " split over tokens" : ""));
      config::ModelConfig model = split_model();
      form.change(model);
      expect_like_one_process(model, 2, sequence, nn::Recompute::none);
    }
}

TEST(TensorAxis, four_ranks) {
  for (const bool sequence : {false, true}) {
    config::ModelConfig model = split_model();
    split_forms().front().change(model);
    expect_like_one_process(model, 4, sequence, nn::Recompute::none);
  }
}

TEST(TensorAxis, three_ranks_whose_shares_differ) {
  config::ModelConfig model = split_model();
  model.heads = model.kv_heads = 6;
  model.ffn_dim = 42;
  expect_like_one_process(model, 3, true, nn::Recompute::none);
}

TEST(TensorAxis, what_is_computed_again_is_exchanged_again) {
  for (const nn::Recompute recompute : {nn::Recompute::selective, nn::Recompute::full})
    for (const bool sequence : {false, true}) {
      config::ModelConfig model = split_model();
      split_forms().front().change(model);
      expect_like_one_process(model, 2, sequence, recompute);
    }
}

TEST(TensorAxis, a_block_sends_what_theory_says) {
  // Forward: one sum behind attention and one behind the feed-forward; backward: one for each again.
  const int64_t num_tokens = 16, dim = 24, ranks = 4;
  for (const bool sequence : {false, true}) {
    ThreadGroup group(static_cast<int>(ranks), "tp");
    group.run([&](Communicator& comm) {
      const auto axis = make_tensor_axis(comm, sequence);
      const at::Tensor x =
          at::randn({sequence ? num_tokens / ranks : num_tokens, dim}).set_requires_grad(true);
      axis->leave(axis->enter(x, num_tokens) * 2).sum().backward();
    });
    const int64_t whole_bytes = num_tokens * dim * 4;
    for (int rank = 0; rank < ranks; ++rank) {
      std::map<std::string, Traffic> traffic = group[rank].traffic();
      if (sequence) {
        for (const char* const what : {"all_gather", "reduce_scatter"}) {
          EXPECT_EQ(traffic[what].calls, 2);
          EXPECT_EQ(traffic[what].sent_bytes, 2 * whole_bytes * (ranks - 1) / ranks);
        }
      } else {
        EXPECT_EQ(traffic["all_reduce"].calls, 2);
        EXPECT_EQ(traffic["all_reduce"].sent_bytes, 2 * (2 * whole_bytes * (ranks - 1) / ranks));
      }
    }
  }
}

void expect_refused(const std::function<void(config::ModelConfig&)>& change, int64_t ranks,
                    const std::string& text) {
  config::ModelConfig model = split_model();
  change(model);
  try {
    check_tensor_split(model, ranks);
    ADD_FAILURE() << "not refused: " << text;
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(TensorAxis, refuses_what_the_ranks_do_not_divide) {
  using Model = config::ModelConfig;
  expect_refused([](Model& m) { m.heads = 6; }, 4, "parallel.tp is 4, which does not divide model.heads = 6");
  expect_refused([](Model& m) { m.kv_heads = 2; }, 4, "does not divide model.kv_heads = 2");
  expect_refused([](Model& m) { m.ffn_dim = 41; }, 2, "does not divide model.ffn_dim = 41");
  expect_refused([](Model& m) { m.moe.expert_dim = 13; }, 2, "does not divide model.moe.expert_dim = 13");
  expect_refused([](Model& m) { m.vocab = 1; }, 2, "the vocabulary has 1 tokens");
  expect_refused([](Model& m) { m.qk_norm = "full"; }, 2, "model.qk_norm = 'full'");
  config::ModelConfig model = split_model();
  model.ffn_dim = 41;
  model.moe.dense_layers.clear();  // then nothing has that width
  check_tensor_split(model, 2);
  check_tensor_split(model, 1);
}

}  // namespace
}  // namespace moebius::parallel
