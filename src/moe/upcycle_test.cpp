#include "moe/upcycle.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "base/test_folder.h"
#include "moe/moe_feed_forward.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"

namespace moebius::moe {
namespace {

config::ModelConfig dense_model() {
  config::ModelConfig model;
  model.layers = 3;
  model.dim = 24;
  model.heads = 4;
  model.kv_heads = 2;
  model.ffn_dim = 40;
  model.vocab = 50;
  model.init_std = 0.3;
  return model;
}

config::MoeConfig eight_experts() {
  config::MoeConfig moe;
  moe.experts = 8;
  moe.top_k = 3;
  return moe;
}

std::unique_ptr<nn::Decoder> make_seeded(const config::ModelConfig& model, uint64_t seed) {
  auto decoder = make_decoder(model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  decoder->params().initialise(seed);
  return decoder;
}

at::Tensor hidden_of(const nn::Decoder& decoder) {
  const at::NoGradGuard no_grad;
  nn::TokenBatch batch;
  batch.tokens_T = (at::arange(31, at::kLong) * 7 + 3).remainder(50);
  batch.positions_T = at::arange(31, at::kInt);
  batch.documents.cu_seqlens = {0, 31};
  batch.documents.max_length = batch.max_position = 31;
  return decoder.forward(batch, {}).hidden_TD;
}

void expect_the_same_output(const config::ModelConfig& model, const config::MoeConfig& moe) {
  const auto dense = make_seeded(model, 3);
  {
    const at::NoGradGuard no_grad;
    for (nn::Param& param : dense->params().params())
      if (param.spec.init.kind == nn::Init::Kind::zeros) param.value.add_(at::randn(param.spec.dims) * 0.1);
  }
  const auto routed = make_seeded(upcycled_config(model, moe), 4);
  const at::Tensor before = hidden_of(*routed);
  upcycle(dense->params(), routed->params());
  const at::Tensor expected = hidden_of(*dense);
  EXPECT_GT(ops::cases::normalised_error(before, expected), 0.1);
  EXPECT_LE(ops::cases::normalised_error(hidden_of(*routed), expected),
            ops::cases::tolerance(ops::cases::OpClass::layer, at::kFloat));
}

TEST(Upcycle, keeps_the_output_of_the_dense_model) {
  expect_the_same_output(dense_model(), eight_experts());
}

TEST(Upcycle, keeps_it_whatever_the_scores_are) {
  config::MoeConfig moe = eight_experts();
  moe.score = "sigmoid";
  moe.groups = 4;
  moe.top_groups = 2;
  moe.balance.bias_rate = 0.001;
  expect_the_same_output(dense_model(), moe);
  moe = eight_experts();
  moe.softmax_order = "after_topk";
  moe.normalize_weights = false;
  expect_the_same_output(dense_model(), moe);
}

TEST(Upcycle, leaves_dense_layers_and_takes_biases_along) {
  config::ModelConfig model = dense_model();
  model.ffn_bias = model.attention_bias = true;
  config::MoeConfig moe = eight_experts();
  moe.dense_layers = {1};
  moe.top_k = 1;
  expect_the_same_output(model, moe);
}

TEST(Upcycle, the_routers_start_fresh) {
  const auto dense = make_seeded(dense_model(), 3);
  const auto routed = make_seeded(upcycled_config(dense_model(), eight_experts()), 4);
  const at::Tensor router = routed->params().find("layers.2.moe.router")->value.detach().clone();
  upcycle(dense->params(), routed->params());
  EXPECT_TRUE(at::equal(routed->params().find("layers.2.moe.router")->value, router));
  EXPECT_GT(router.std().item<double>(), 0.1);
}

TEST(Upcycle, refuses_what_would_change_the_output) {
  const auto message = [](const std::function<void(config::MoeConfig&)>& change) {
    config::MoeConfig moe = eight_experts();
    change(moe);
    return message_of<UserError>([&] { upcycled_config(dense_model(), moe); });
  };
  EXPECT_EQ(message([](config::MoeConfig& moe) { moe.normalize_weights = false; }),
            "model.moe.normalize_weights is false, but upcycling keeps the dense model's output only with "
            "weights that sum to 1; set it to true, or softmax_order to 'after_topk'");
  EXPECT_EQ(message([](config::MoeConfig& moe) { moe.weight_scale = 2; }),
            "model.moe.weight_scale is not 1, but upcycling keeps the dense model's output only with weights "
            "that sum to 1; set it to 1");
  EXPECT_EQ(message([](config::MoeConfig& moe) { moe.capacity_factor = 1; }),
            "model.moe.capacity_factor is set, but upcycling keeps the dense model's output only without "
            "dropped tokens; set it to 0");
  EXPECT_EQ(message([](config::MoeConfig& moe) { moe.shared_experts = 1; }),
            "model.moe.shared_experts is above 0, but upcycling keeps the dense model's output only without "
            "shared experts; set it to 0");
  EXPECT_EQ(message([](config::MoeConfig& moe) { moe.activation = "clamped_swiglu"; }),
            "model.moe.activation is not 'swiglu', but upcycling keeps the dense model's output only with "
            "the dense feed-forward's activation; set it to 'swiglu'");
  EXPECT_EQ(message([](config::MoeConfig& moe) { moe.experts = 0; }),
            "model.moe.experts is 0; set how many experts each feed-forward becomes");
  config::ModelConfig routed = dense_model();
  routed.moe.experts = 4;
  EXPECT_EQ(message_of<UserError>([&] { upcycled_config(routed, eight_experts()); }),
            "model.moe.experts is 4 already; only a dense model can be upcycled, give one with "
            "model.moe.experts = 0");
}

}  // namespace
}  // namespace moebius::moe
