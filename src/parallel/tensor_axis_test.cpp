#include "parallel/tensor_axis.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "config/validate.h"
#include "moe/moe_feed_forward.h"
#include "parallel/split_check.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

std::vector<SplitForm> tensor_forms() {
  using Model = config::ModelConfig;
  return split_forms({
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
  });
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
  for (size_t rank = 0; rank < got.size(); ++rank)
    expect_like_whole(want, decoders, got, rank, {0, batch.tokens_T.size(0)});
}

TEST(TensorAxis, every_form_of_a_decoder_is_that_of_one_process) {
  for (const SplitForm& form : tensor_forms())
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
    tensor_forms().front().change(model);
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
      tensor_forms().front().change(model);
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
