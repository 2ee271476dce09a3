// Decoders with experts: caching, recomputation, dropping, balance.
#include "moe/moe_feed_forward.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/parallel.h"
#include "moe/load_statistics.h"
#include "moe/test_model.h"
#include "nn/layer_check.h"

namespace moebius::moe {
namespace {

config::ModelConfig small_model() {
  config::ModelConfig model = test_model();
  model.qk_norm = "head";
  model.moe.experts = 5;
  model.moe.shared_experts = 1;
  model.moe.balance.z_loss = 0.01;
  return model;
}

std::unique_ptr<nn::Decoder> make(const config::ModelConfig& model, at::ScalarType dtype = at::kFloat) {
  auto decoder = make_decoder(model);
  decoder->params().allocate(dtype, at::kCPU);
  decoder->params().initialise(3);
  return decoder;
}

nn::TokenBatch batch_of(const std::vector<int32_t>& lengths) {
  return nn::document_batch(lengths, small_model().vocab);
}

at::Tensor logits(const nn::Decoder& decoder, const nn::TokenBatch& batch) {
  const at::NoGradGuard no_grad;
  return decoder.logits(decoder.forward(batch, {}).hidden_TD);
}

struct Gradients {
  double loss;
  std::vector<at::Tensor> grads;
};

Gradients gradients(nn::Decoder& decoder, const nn::TokenBatch& batch, nn::Recompute recompute) {
  nn::ForwardOptions options;
  options.recompute = recompute;
  options.with_losses = true;
  const nn::DecoderOutput output = decoder.forward(batch, options);
  const at::Tensor loss = decoder.loss(output.hidden_TD, batch.targets_T, 0.1) + output.balance_loss;
  loss.backward();
  Gradients result{loss.item<double>(), {}};
  for (nn::Param& param : decoder.params().params()) {
    if (param.spec.is_buffer) continue;
    result.grads.push_back(param.value.grad().clone());
    param.value.mutable_grad().reset();
  }
  return result;
}

TEST(MoeDecoder, declares_what_the_config_says) {
  const auto decoder = make_decoder(small_model());
  EXPECT_EQ(decoder->params().find("layers.0.moe.gate_up")->spec.dims, (std::vector<int64_t>{5, 24, 24}));
  EXPECT_EQ(decoder->params().find("layers.1.ffn.down")->spec.dims, (std::vector<int64_t>{24, 40}));
  EXPECT_EQ(decoder->params().find("layers.1.moe.router"), nullptr);
  EXPECT_NE(decoder->params().find("layers.2.moe.shared.gate_up"), nullptr);
  EXPECT_FALSE(decoder->params().find("final_norm")->spec.decays);
  EXPECT_EQ(decoder->params().num_elements(nn::ParamClass::router), 2 * 5 * 24);
}

TEST(MoeDecoder, initial_values_depend_on_seed_and_name_alone) {
  const int threads = num_threads();
  const auto first = make(small_model());
  set_num_threads(1);
  config::ModelConfig other = small_model();
  other.layers = 4;  // more parameters
  const auto second = make(other);
  set_num_threads(threads);
  for (const nn::Param& param : first->params().params())
    EXPECT_TRUE(at::equal(param.value, second->params().find(param.spec.name)->value)) << param.spec.name;
  const at::Tensor& experts = first->params().find("layers.0.moe.gate_up")->value;
  EXPECT_NEAR(experts.std().item<double>(), 0.3, 0.02);
  EXPECT_FALSE(at::equal(experts, first->params().find("layers.2.moe.gate_up")->value));
}

TEST(MoeDecoder, the_cache_gives_the_logits_of_a_whole_pass) {
  const auto decoder = make(small_model());
  const nn::TokenBatch batch = batch_of({13});
  const at::Tensor whole_TV = logits(*decoder, batch);
  nn::KvCache cache = decoder->make_cache(13);
  // A prompt of five, three at once behind it, then one at a time.
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 5}, {5, 8}, {8, 9}, {9, 10}, {10, 11}, {11, 12}, {12, 13}}) {
    const at::Tensor last_V = decoder->next_logits(batch.tokens_T.slice(0, begin, end), cache);
    EXPECT_LT((last_V - whole_TV[end - 1]).abs().max().item<double>(), 1e-4) << "after token " << end;
  }
  EXPECT_EQ(cache.length(), 13);
}

TEST(MoeDecoder, documents_do_not_see_each_other) {
  const auto decoder = make(small_model());
  const at::Tensor packed = logits(*decoder, batch_of({6, 1, 9}));
  nn::TokenBatch second = batch_of({9});
  second.tokens_T = batch_of({6, 1, 9}).tokens_T.slice(0, 7);
  EXPECT_LT((packed.slice(0, 7) - logits(*decoder, second)).abs().max().item<double>(), 1e-4);
}

TEST(MoeDecoder, recomputation_gives_the_same_gradients_bit_for_bit) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto decoder = make(small_model(), dtype);
    const nn::TokenBatch batch = batch_of({8, 8});
    const Gradients plain = gradients(*decoder, batch, nn::Recompute::none);
    for (const nn::Recompute recompute : {nn::Recompute::selective, nn::Recompute::full}) {
      const Gradients again = gradients(*decoder, batch, recompute);
      EXPECT_EQ(again.loss, plain.loss);
      for (size_t i = 0; i < plain.grads.size(); ++i)
        EXPECT_TRUE(at::equal(again.grads[i], plain.grads[i])) << i;
    }
  }
}

TEST(MoeDecoder, capacity_drops_slots_in_training_and_none_in_generation) {
  config::ModelConfig model = small_model();
  model.moe.capacity_factor = 0.5;
  const auto decoder = make(model);
  LoadStatistics statistics(model, at::kCPU);
  nn::ForwardOptions options;
  options.observer = &statistics;
  const at::NoGradGuard no_grad;
  decoder->forward(batch_of({20}), options);
  const auto layers = statistics.unpack(statistics.packed(), 1);
  ASSERT_EQ(layers.size(), 2u);
  // Five experts take at most 0.5 * 60 / 5 = 6 of the 60 slots each.
  EXPECT_GE(layers[0].dropped_slots, 30);
  EXPECT_LT(layers[0].dropped_slots, 60);
  statistics.reset();
  options.may_drop = false;
  decoder->forward(batch_of({20}), options);
  EXPECT_EQ(statistics.unpack(statistics.packed(), 1)[0].dropped_slots, 0);
}

TEST(LoadStatistics, counts_and_measures_balance) {
  config::ModelConfig model = small_model();
  LoadStatistics statistics(model, at::kCPU);
  const at::Tensor counts = at::tensor({10.f, 0.f, 20.f, 10.f, 10.f});
  const at::Tensor offsets = at::tensor({0, 10, 10, 25, 35, 45}, at::kInt);
  for (int micro = 0; micro < 2; ++micro) statistics.observe(2, counts, at::scalar_tensor(1.5f), offsets, 50);
  const auto layers = statistics.unpack(statistics.packed(), 2);
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers[1].layer, 2);
  EXPECT_EQ(layers[1].load, (std::vector<float>{1, 0, 2, 1, 1}));
  EXPECT_DOUBLE_EQ(layers[1].max_violation, 1.0);
  EXPECT_DOUBLE_EQ(layers[1].entropy, 1.5);
  EXPECT_EQ(layers[1].dropped_slots, 10);
}

TEST(LoadStatistics, the_bias_moves_against_the_load_and_keeps_zero_mean) {
  config::ModelConfig model = small_model();
  model.moe.balance.bias_rate = 0.001;
  const auto decoder = make(model);
  LoadStatistics statistics(model, at::kCPU);
  const at::Tensor offsets = at::tensor({0, 10, 10, 30, 40, 50}, at::kInt);
  for (const int64_t layer : {0, 2})
    statistics.observe(layer, at::tensor({10.f, 0.f, 20.f, 10.f, 10.f}), at::scalar_tensor(1.f), offsets, 50);
  const at::Tensor& bias = decoder->params().find("layers.0.moe.router_bias")->value;
  statistics.update_bias(decoder->params(), 0.001,
                         at::scalar_tensor(std::numeric_limits<float>::quiet_NaN()));
  EXPECT_TRUE(at::equal(bias, at::zeros(5))) << "a skipped step changes nothing";
  statistics.update_bias(decoder->params(), 0.001, at::scalar_tensor(1.0f));
  EXPECT_LT((bias - at::tensor({0.f, 0.001f, -0.001f, 0.f, 0.f})).abs().max().item<double>(), 1e-9);
  EXPECT_NEAR(bias.sum().item<double>(), 0, 1e-8);
}

}  // namespace
}  // namespace moebius::moe
