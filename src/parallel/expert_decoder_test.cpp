// Whole decoders whose experts are spread over ranks, against one that has them all.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "moe/moe_feed_forward.h"
#include "moe/test_model.h"
#include "nn/layer_check.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

using ops::cases::OpClass;

config::ModelConfig small_model() {
  config::ModelConfig model = moe::test_model();
  model.moe.shared_experts = 1;
  model.moe.balance.z_loss = 0.01;
  model.moe.balance.aux_loss = 0.02;
  return model;
}

// Two documents, other ones on every rank.
nn::TokenBatch batch_of(int rank) {
  return nn::document_batch({9 + rank, 14 - 2 * rank}, small_model().vocab, 7 + 2 * rank, rank);
}

class SeenChoices final : public nn::RoutingObserver {
 public:
  void observe(int64_t, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t) override {}
  void decided(int64_t, const at::Tensor&, const at::Tensor& experts_TK, const at::Tensor&) override {
    all.push_back(experts_TK.clone());
  }
  std::vector<at::Tensor> all;
};

struct Outcome {
  double loss = 0;
  std::vector<at::Tensor> choices;
  std::map<std::string, at::Tensor> grads;
};

// Forward and backward over the batches of the given ranks, as micro-batches of a step with num_ranks of
// them.
Outcome outcome_of(nn::Decoder& decoder, const std::vector<int>& ranks, int num_ranks,
                   nn::Recompute recompute) {
  Outcome outcome;
  SeenChoices seen;
  nn::ForwardOptions options;
  options.recompute = recompute;
  options.with_losses = true;
  for (const int rank : ranks) {
    const nn::TokenBatch batch = batch_of(rank);
    options.observer = &seen;
    const nn::DecoderOutput output = decoder.forward(batch, options);
    const at::Tensor loss =
        decoder.loss(output.hidden_TD, batch.targets_T, 0.02) + output.balance_loss / num_ranks;
    loss.backward();
    outcome.loss += loss.item<double>();
  }
  outcome.choices = seen.all;
  for (const nn::Param& param : decoder.params().params())
    if (!param.spec.is_buffer) outcome.grads[param.spec.name] = param.value.grad();
  return outcome;
}

std::unique_ptr<nn::Decoder> make(const config::ModelConfig& model, const nn::Shards& shards,
                                  std::shared_ptr<const moe::TokenDispatcher> dispatcher) {
  auto decoder = moe::make_decoder(model, std::move(dispatcher));
  decoder->params().split(shards);
  decoder->params().allocate(at::kFloat, at::kCPU);
  decoder->params().initialise(5);
  return decoder;
}

void expect_equal_outcome(const config::ModelConfig& model, int num_ranks, int64_t chunks,
                          nn::Recompute recompute) {
  std::vector<int> all_ranks;
  for (int rank = 0; rank < num_ranks; ++rank) all_ranks.push_back(rank);
  const Outcome want = outcome_of(*make(model, {}, nullptr), all_ranks, num_ranks, recompute);

  std::vector<Outcome> have(static_cast<size_t>(num_ranks));
  ThreadGroup group(num_ranks, "ep");
  group.run([&](Communicator& ep) {
    const auto decoder = make(model, {.ep = {ep.size(), ep.rank()}},
                              std::make_shared<ExpertDispatcher>(ep, model.moe.experts, chunks));
    have[static_cast<size_t>(ep.rank())] = outcome_of(*decoder, {ep.rank()}, num_ranks, recompute);
  });

  double loss = 0;
  std::vector<at::Tensor> choices;
  for (const Outcome& rank : have) {
    loss += rank.loss;
    choices.insert(choices.end(), rank.choices.begin(), rank.choices.end());
  }
  EXPECT_NEAR(loss, want.loss, 1e-6 * want.loss);
  ASSERT_EQ(choices.size(), want.choices.size());
  for (size_t i = 0; i < choices.size(); ++i) EXPECT_TRUE(at::equal(choices[i], want.choices[i])) << i;
  for (const auto& [name, grad] : want.grads) {
    at::Tensor sum;
    if (have[0].grads.at(name).size(0) == grad.size(0)) {
      sum = have[0].grads.at(name).clone();
      for (size_t rank = 1; rank < have.size(); ++rank) sum += have[rank].grads.at(name);
    } else {  // experts: what the ranks have, one after the other
      std::vector<at::Tensor> parts;
      for (const Outcome& rank : have) parts.push_back(rank.grads.at(name));
      sum = at::cat(parts);
    }
    EXPECT_LE(ops::cases::normalised_error(sum.to(at::kDouble), grad.to(at::kDouble)),
              ops::cases::tolerance(OpClass::layer, at::kFloat))
        << name;
  }
}

TEST(SpreadDecoder, has_the_losses_choices_and_gradients_of_one_process) {
  for (const int num_ranks : {2, 4}) {
    for (const int64_t chunks : {1, 3}) {
      SCOPED_TRACE(testing::Message() << num_ranks << " ranks, " << chunks << " chunks");
      expect_equal_outcome(small_model(), num_ranks, chunks, nn::Recompute::none);
    }
  }
}

TEST(SpreadDecoder, recomputes_layers_with_their_exchanges) {
  for (const nn::Recompute recompute : {nn::Recompute::selective, nn::Recompute::full}) {
    SCOPED_TRACE(static_cast<int>(recompute));
    expect_equal_outcome(small_model(), 2, 2, recompute);
  }
}

TEST(SpreadDecoder, takes_biases_and_groups) {
  config::ModelConfig model = small_model();
  model.moe.expert_bias = model.moe.router_bias = true;
  model.moe.activation = "clamped_swiglu";
  model.moe.groups = 4;
  model.moe.top_groups = 2;
  expect_equal_outcome(model, 4, 2, nn::Recompute::none);
}

}  // namespace
}  // namespace moebius::parallel
