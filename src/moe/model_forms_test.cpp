// Whole decoders of every form: caching, recomputation, greedy text; losses over all layers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "config/validate.h"
#include "moe/moe_feed_forward.h"
#include "moe/test_model.h"
#include "nn/batch_generation.h"
#include "nn/generation.h"
#include "nn/layer_check.h"
#include "nn/multi_token.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "ops/linear_loss.h"

namespace moebius::moe {
namespace {

struct Form {
  std::string name;
  std::function<void(config::ModelConfig&)> change;
};

void make_latent(config::ModelConfig& model) {
  model.attention = "mla";
  model.mla.kv_rank = 10;
  model.mla.nope_dim = 8;
  model.mla.rope_dim = 4;
  model.mla.value_dim = 6;
}

void scale_rope(config::ModelConfig& model, const char* scaling) {
  model.rope.scaling = scaling;
  model.rope.factor = 4;
  model.rope.original_context = 32;
}

const std::vector<Form>& forms() {
  using Model = config::ModelConfig;
  static const std::vector<Form> all{
      {"llama",
       [](Model& m) {
         m.moe.experts = 0;
         m.attention_bias = m.attention_output_bias = m.ffn_bias = true;
         scale_rope(m, "llama3");
       }},
      {"qwen2_moe",
       [](Model& m) {
         m.attention_bias = true;
         m.moe.shared_experts = 1;
         m.moe.shared_dim = 20;
         m.moe.shared_gate = true;
         m.moe.normalize_weights = false;
       }},
      {"gpt_oss",
       [](Model& m) {
         m.attention_bias = m.attention_output_bias = m.attention_sinks = true;
         m.sliding_window = 4;
         m.sliding_layers = {0, 2};
         m.moe.softmax_order = "after_topk";
         m.moe.router_bias = m.moe.expert_bias = true;
         m.moe.activation = "clamped_swiglu";
         scale_rope(m, "yarn");
         m.rope.truncate = false;
       }},
      {"glm4_moe",
       [](Model& m) {
         m.attention_bias = true;
         m.rotary_dim = 4;
         m.qk_norm = "head";
         m.moe.score = "sigmoid";
         m.moe.groups = 4;
         m.moe.top_groups = 2;
         m.moe.group_score = "top2_sum";
         m.moe.selection_bias = true;
         m.moe.shared_experts = 1;
         m.moe.weight_scale = 1.5;
       }},
      {"deepseek_v2",
       [](Model& m) {
         make_latent(m);
         m.moe.groups = 4;
         m.moe.top_groups = 2;
         m.moe.shared_experts = 2;
         scale_rope(m, "yarn");
         m.rope.mscale = m.rope.mscale_all_dim = 0.707;
       }},
      {"deepseek_v3",
       [](Model& m) {
         make_latent(m);
         m.mla.q_rank = 14;
         m.mtp.depth = 1;
         m.moe.score = "sigmoid";
         m.moe.groups = 2;
         m.moe.top_groups = 1;
         m.moe.group_score = "top2_sum";
         m.moe.balance.bias_rate = 0.001;
         m.moe.balance.aux_scope = "sequence";
       }},
      {"windows_everywhere",
       [](Model& m) {
         m.sliding_window = 3;
         m.moe.balance.aux_scope = "model";
         m.moe.balance.z_loss = 0.01;
         scale_rope(m, "linear");
       }},
      {"dynamic_rope_within_its_context", [](Model& m) { scale_rope(m, "dynamic"); }},
  };
  return all;
}

// A decoder with random values in every parameter, buffers and biases too.
std::unique_ptr<nn::Decoder> make(const config::ModelConfig& model, at::ScalarType dtype = at::kFloat) {
  config::validate_model(model);
  auto decoder = make_decoder(model);
  decoder->params().allocate(dtype, at::kCPU);
  decoder->params().initialise(3);
  const at::NoGradGuard no_grad;
  at::manual_seed(5);
  for (nn::Param& param : decoder->params().params())
    if (param.spec.init.kind != nn::Init::Kind::normal)
      param.value.add_(at::randn(param.spec.dims).to(param.value.scalar_type()) * 0.2);
  return decoder;
}

nn::TokenBatch batch_of(const std::vector<int32_t>& lengths) {
  nn::TokenBatch batch = nn::document_batch(lengths, 50);
  std::vector<at::Tensor> sequences;
  for (const int32_t length : lengths)
    sequences.push_back(at::full({length}, static_cast<int64_t>(sequences.size()), at::kInt));
  batch.num_sequences = static_cast<int64_t>(lengths.size());
  if (lengths.size() > 1) batch.sequence_of_T = at::cat(sequences);
  return batch;
}

struct Gradients {
  double loss;
  std::vector<std::pair<std::string, at::Tensor>> grads;
};

Gradients gradients(nn::Decoder& decoder, const nn::TokenBatch& batch, nn::Recompute recompute) {
  nn::ForwardOptions options;
  options.recompute = recompute;
  options.with_losses = options.with_mtp = true;
  const nn::DecoderOutput output = decoder.forward(batch, options);
  at::Tensor loss = decoder.loss(output.hidden_TD, batch.targets_T, 0.1);
  if (output.balance_loss.defined()) loss = loss + output.balance_loss;
  if (output.mtp_hidden_TD.defined())
    loss = loss + decoder.loss(output.mtp_hidden_TD, output.mtp_targets_T, 0.03);
  loss.backward();
  Gradients result{loss.item<double>(), {}};
  for (nn::Param& param : decoder.params().params()) {
    if (param.spec.is_buffer) continue;
    EXPECT_TRUE(param.value.grad().defined()) << param.spec.name << " has no gradient";
    if (!param.value.grad().defined()) continue;
    result.grads.emplace_back(param.spec.name, param.value.grad().clone());
    param.value.mutable_grad().reset();
  }
  return result;
}

TEST(ModelForms, the_cache_gives_the_logits_of_a_whole_pass) {
  for (const Form& form : forms()) {
    SCOPED_TRACE(form.name);
    config::ModelConfig model = test_model();
    form.change(model);
    const auto decoder = make(model);
    const nn::TokenBatch batch = batch_of({13});
    const at::NoGradGuard no_grad;
    nn::ForwardOptions options;
    options.may_drop = false;
    const at::Tensor whole_TV = decoder->logits(decoder->forward(batch, options).hidden_TD);
    nn::KvCache cache = decoder->make_cache(13);
    int64_t begin = 0;
    for (const int64_t count : {5, 3, 1, 1, 2, 1}) {
      const at::Tensor last_V = decoder->next_logits(batch.tokens_T.narrow(0, begin, count), cache);
      begin += count;
      EXPECT_LT(ops::cases::normalised_error(last_V, whole_TV[begin - 1]),
                ops::cases::tolerance(ops::cases::OpClass::layer, at::kFloat))
          << "after token " << begin;
    }
  }
}

// Also of latents.
TEST(ModelForms, a_cache_in_int8_gives_nearly_the_logits_of_a_whole_pass) {
  for (const Form& form : forms()) {
    SCOPED_TRACE(form.name);
    config::ModelConfig model = test_model();
    form.change(model);
    const auto decoder = make(model);
    const nn::TokenBatch batch = batch_of({13});
    nn::KvCache exact = decoder->make_cache(13), rounded = decoder->make_cache(13, nn::KvFormat::int8);
    const at::Tensor wanted = decoder->next_hidden(batch.tokens_T, exact),
                     got = decoder->next_hidden(batch.tokens_T, rounded);
    // A rounding error is 1/254 of a head's largest channel at most; experts may change.
    EXPECT_GT(ops::cases::normalised_error(got, wanted), 1e-5);
    EXPECT_LT(ops::cases::normalised_error(got, wanted), 0.5);
  }
}

TEST(ModelForms, generation_with_a_cache_gives_the_same_tokens) {
  for (const Form& form : forms()) {
    SCOPED_TRACE(form.name);
    config::ModelConfig model = test_model();
    form.change(model);
    const auto decoder = make(model);
    std::vector<int64_t> texts[2];
    for (const bool use_cache : {false, true}) {
      nn::GenerateOptions options;
      options.sampling.temperature = 0;
      options.max_tokens = 16;
      options.use_cache = use_cache;
      nn::generate(*decoder, {3, 14, 15, 9, 2, 6}, options, [&](int64_t token) {
        texts[use_cache].push_back(token);
        return true;
      });
    }
    EXPECT_EQ(texts[0].size(), 16u);
    EXPECT_EQ(texts[0], texts[1]);
  }
}

TEST(ModelForms, many_sequences_at_once_are_continued_as_each_alone) {
  const auto decoder = make(test_model());
  const std::vector<std::vector<int64_t>> prompts = {{3, 14, 15, 9, 2, 6}, {5}, {3, 5, 8, 9}, {7, 9}};
  std::vector<std::vector<int64_t>> alone(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    nn::GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_tokens = 8;
    nn::generate(*decoder, prompts[i], options, [&](int64_t token) {
      alone[i].push_back(token);
      return true;
    });
  }
  nn::BatchGenerateOptions options;
  options.max_tokens = 8;
  options.pass_tokens = 15;  // several passes for a token
  EXPECT_EQ(nn::continue_all(*decoder, prompts, options), alone);
  // The end is not part of a continuation.
  const int64_t end = alone[0][4];
  options.end_ids = {end};
  const auto ended = nn::continue_all(*decoder, prompts, options);
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(ended[i], std::vector<int64_t>(alone[i].begin(), std::ranges::find(alone[i], end))) << i;
}

TEST(ModelForms, a_wide_beam_finds_the_likeliest_continuation) {
  const auto decoder = make(test_model());
  const int64_t vocab = decoder->config().vocab;
  const at::NoGradGuard no_grad;
  const auto log_p = [&](const std::vector<int64_t>& tokens) {
    nn::KvCache cache = decoder->make_cache(8);
    return at::log_softmax(decoder->next_logits(at::tensor(tokens), cache), 0);
  };
  const std::vector<std::vector<int64_t>> prompts = {{3, 14, 15}, {9}};
  nn::BatchGenerateOptions options;
  options.beams = vocab;
  options.max_tokens = 2;
  const auto found = nn::continue_all(*decoder, prompts, options);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const at::Tensor first_V = log_p(prompts[i]);
    double best = -INFINITY;
    std::vector<int64_t> likeliest;
    for (int64_t token = 0; token < vocab; ++token) {
      std::vector<int64_t> longer = prompts[i];
      longer.push_back(token);
      const auto [p, id] = log_p(longer).max(0);
      const double score = first_V[token].item<double>() + p.item<double>();
      if (score <= best) continue;
      best = score;
      likeliest = {token, id.item<int64_t>()};
    }
    EXPECT_EQ(found[i], likeliest);
  }
}

TEST(ModelForms, recomputation_gives_the_same_gradients_bit_for_bit) {
  for (const Form& form : forms())
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(form.name);
      config::ModelConfig model = test_model();
      form.change(model);
      const auto decoder = make(model, dtype);
      const nn::TokenBatch batch = batch_of({8, 5});
      const Gradients plain = gradients(*decoder, batch, nn::Recompute::none);
      for (const nn::Recompute recompute : {nn::Recompute::selective, nn::Recompute::full}) {
        const Gradients again = gradients(*decoder, batch, recompute);
        EXPECT_EQ(again.loss, plain.loss);
        ASSERT_EQ(again.grads.size(), plain.grads.size());
        for (size_t i = 0; i < plain.grads.size(); ++i)
          EXPECT_TRUE(at::equal(again.grads[i].second, plain.grads[i].second)) << plain.grads[i].first;
      }
    }
}

// Gradients of whole models against differences of the loss along a random direction of all parameters.
TEST(ModelForms, gradients_agree_with_differences_of_the_loss) {
  for (const Form& form : forms()) {
    SCOPED_TRACE(form.name);
    config::ModelConfig model = test_model();
    form.change(model);
    // No choice of experts may change between the two sides.
    model.moe.top_k = static_cast<int64_t>(model.moe.experts);
    model.moe.groups = model.moe.top_groups = 1;
    const auto decoder = make(model);
    const nn::TokenBatch batch = batch_of({6, 4});
    const Gradients exact = gradients(*decoder, batch, nn::Recompute::none);
    constexpr double kStep = 2e-3;
    double expected = 0;
    std::vector<at::Tensor> along;
    for (const auto& [name, grad] : exact.grads) {
      along.push_back(grad / grad.norm().clamp_min(1e-6));
      expected += (grad * along.back()).sum().item<double>();
    }
    double sides[2];
    for (const int side : {0, 1}) {
      const double step = side == 0 ? -kStep : 2 * kStep;
      {
        const at::NoGradGuard no_grad;
        size_t i = 0;
        for (nn::Param& param : decoder->params().params())
          if (!param.spec.is_buffer) param.value.add_(along[i++], step);
      }
      sides[side] = gradients(*decoder, batch, nn::Recompute::none).loss;
    }
    const double slope = (sides[1] - sides[0]) / (2 * kStep);
    EXPECT_NEAR(slope / expected, 1.0, 0.02) << slope << " and " << expected;
  }
}

TEST(ModelForms, dynamic_rope_follows_the_longest_sequence) {
  const at::NoGradGuard no_grad;
  const auto logits = [](const nn::Decoder& decoder, int32_t length) {
    return decoder.logits(decoder.forward(batch_of({length}), {}).hidden_TD);
  };
  config::ModelConfig model = test_model();
  const auto plain = make(model);
  // A head of 8 channels over 40 tokens, of a model for 32.
  model.rope_theta *= std::pow(4 * 40 / 32.0 - 3, 8 / 6.0);
  const auto stretched = make(model);
  model.rope_theta = test_model().rope_theta;
  scale_rope(model, "dynamic");
  const auto dynamic = make(model);
  EXPECT_TRUE(at::equal(logits(*dynamic, 20), logits(*plain, 20)));
  EXPECT_LT(ops::cases::normalised_error(logits(*dynamic, 40), logits(*stretched, 40)),
            ops::cases::tolerance(ops::cases::OpClass::layer, at::kFloat));
  EXPECT_TRUE(at::equal(logits(*dynamic, 20), logits(*plain, 20))) << "after a longer one";
}

// One loss for the model, from the sums of its layers.
class FixedLoad final : public nn::FeedForward {
 public:
  explicit FixedLoad(int64_t layer) : layer_(layer) {}
  nn::FeedForwardResult forward(const at::Tensor& x_TD, const nn::FeedForwardContext&) const override {
    nn::FeedForwardResult result;
    result.y_TD = x_TD;
    result.prob_sum_SE = at::tensor({1.0f, 2.0f, 3.0f, 4.0f}) * (layer_ == 0 ? 1.0f : 0.5f);
    result.counts_SE = at::tensor({8.0f, 6.0f, 4.0f, 2.0f});
    return result;
  }

 private:
  int64_t layer_;
};

TEST(ModelBalance, counts_the_tokens_of_all_layers_together) {
  config::ModelConfig model = test_model();
  model.layers = 2;
  model.moe.experts = 4;
  model.moe.top_k = 2;
  model.moe.balance.aux_loss = 0.25;
  model.moe.balance.aux_scope = "model";
  nn::Decoder decoder(model, [](int64_t layer, const std::string&, nn::ParamTable&) {
    return std::make_unique<FixedLoad>(layer);
  });
  decoder.params().allocate(at::kFloat, at::kCPU);
  decoder.params().initialise(1);
  const nn::DecoderOutput output = decoder.forward(batch_of({10}), {});
  // Of 20 tokens: P = (1.5, 3, 4.5, 6) / 20, f = (16, 12, 8, 4) / 40.
  const double expected = 0.25 * 4 * (1.5 * 16 + 3 * 12 + 4.5 * 8 + 6 * 4) / (20.0 * 40.0);
  EXPECT_FLOAT_EQ(output.balance_loss.item<float>(), static_cast<float>(expected));
}

TEST(ModelBalance, of_one_layer_is_that_of_the_micro_batch) {
  double losses[2];
  std::vector<at::Tensor> grads[2];
  for (const int i : {0, 1}) {
    config::ModelConfig model = test_model();
    model.moe.dense_layers = {0, 1};
    model.moe.balance.aux_scope = i == 0 ? "micro_batch" : "model";
    const auto decoder = make(model);
    const Gradients result = gradients(*decoder, batch_of({9, 4}), nn::Recompute::none);
    losses[i] = result.loss;
    for (const auto& [name, grad] : result.grads) grads[i].push_back(grad);
  }
  EXPECT_FLOAT_EQ(static_cast<float>(losses[0]), static_cast<float>(losses[1]));
  for (size_t i = 0; i < grads[0].size(); ++i)
    EXPECT_LT(ops::cases::normalised_error(grads[1][i], grads[0][i]),
              ops::cases::tolerance(ops::cases::OpClass::layer, at::kFloat));
}

TEST(MultiToken, predicts_the_token_after_the_next_within_a_document) {
  constexpr int64_t kNone = kernels::kIgnoredTarget;
  const auto longs = at::TensorOptions().dtype(at::kLong);
  const std::vector<int64_t> tokens{1, 2, 3, 4, 5, 6}, targets{2, 3, 9, 5, 6, 7};
  const auto shifted = nn::MultiToken::shift(at::tensor(tokens, longs), at::tensor(targets, longs),
                                             at::tensor({0, 1, 2, 0, 1, 2}, at::kInt));
  EXPECT_TRUE(at::equal(shifted.targets_T, at::tensor({3L, 9L, kNone, 6L, 7L, kNone}, longs)));
  EXPECT_TRUE(at::equal(shifted.tokens_T.slice(0, 0, 2), at::tensor({2L, 3L}, longs)));
}

TEST(MultiToken, is_computed_in_training_alone) {
  config::ModelConfig model = test_model();
  model.moe.experts = 0;  // whose sums depend on how many tokens an expert gets
  model.mtp.depth = 1;
  const auto decoder = make(model);
  const nn::TokenBatch batch = batch_of({6, 7});
  EXPECT_FALSE(decoder->forward(batch, {}).mtp_hidden_TD.defined());
  nn::ForwardOptions options;
  options.with_mtp = true;
  const nn::DecoderOutput with = decoder->forward(batch, options);
  EXPECT_TRUE(at::equal(with.hidden_TD, decoder->forward(batch, {}).hidden_TD));
  EXPECT_EQ(with.mtp_hidden_TD.sizes(), with.hidden_TD.sizes());
  // Later tokens of a document do not reach it, but the next one does.
  nn::TokenBatch other = batch;
  other.tokens_T = batch.tokens_T.clone();
  other.tokens_T[3] = 1;
  const at::Tensor changed =
      (decoder->forward(other, options).mtp_hidden_TD - with.mtp_hidden_TD).abs().sum(1);
  EXPECT_EQ(changed.slice(0, 0, 2).max().item<float>(), 0);
  EXPECT_GT(changed[2].item<float>(), 0);
  EXPECT_EQ(changed.slice(0, 6).max().item<float>(), 0);
}

}  // namespace
}  // namespace moebius::moe
