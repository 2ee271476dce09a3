#include "train/quantise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "data/prepare.h"
#include "nn/generation.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/quantised_model.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

namespace fs = std::filesystem;

// A run that has learnt a little, made once.
class Quantise : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TestFolder>();
    TrainOptions options = tiny_run(*folder_, "float", 60);
    train(options);
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static fs::path path(const std::string& name) { return *folder_ / name; }

  static QuantiseResult quantise(const std::string& to, const std::string& scheme = "int8-w8a8") {
    QuantiseOptions options;
    options.from = path("float");
    options.to = path(to);
    options.scheme = scheme;
    return quantise_run(options);
  }

  static double loss_of(const LoadedModel& model) {
    const auto parts =
        data::open_for_evaluation(path("text.txt").string(), model.tokenizer, path("corpora"), {});
    data::ValidationSet set(parts, model.tokenizer, model.config.model.vocab, 32, 4);
    return evaluate(*model.decoder, set, 8).loss;
  }

  static std::unique_ptr<TestFolder> folder_;
};

std::unique_ptr<TestFolder> Quantise::folder_;

TEST_F(Quantise, keeps_the_loss_and_halves_the_weights) {
  const double before = loss_of(load_model_to_run(path("float"), at::kCPU));
  for (const std::string& scheme : quant::scheme_names()) {
    const QuantiseResult result = quantise("kept-" + scheme, scheme);
    EXPECT_EQ(result.weights.size(), 2u * 2 + 2 + 4);  // attention; dense layer; experts and the shared one
    EXPECT_TRUE(result.left_float.empty());
    const bool is_int4 = scheme == "int4-w4a16";
    for (const QuantisedWeight& weight : result.weights) {
      EXPECT_GT(weight.relative_error, 1e-3) << weight.name;
      EXPECT_LT(weight.relative_error, is_int4 ? 2e-1 : 2e-2) << weight.name;
      // The range with the least error leaves some values of a group out.
      EXPECT_EQ(weight.clipped_share > 0, is_int4) << weight.name;
      EXPECT_GE(weight.range, weight.smallest_range) << weight.name;
    }
    const LoadedModel held = load_model_to_run(path("kept-" + scheme), at::kCPU);
    EXPECT_EQ(held.scheme, scheme);
    EXPECT_EQ(held.step, 60);
    int64_t num_products = 0;
    for (const nn::Param& param : held.decoder->params().params()) {
      EXPECT_NE(param.value.defined(), param.product != nullptr) << param.spec.name;
      num_products += param.product != nullptr;
    }
    EXPECT_EQ(num_products, 10);
    EXPECT_NEAR(loss_of(held), before, is_int4 ? 5e-2 : 5e-3);
  }
}

TEST_F(Quantise, a_cache_in_int8_costs_little) {
  const LoadedModel model = load_model_to_run(path("float"), at::kCPU);
  const auto parts =
      data::open_for_evaluation(path("text.txt").string(), model.tokenizer, path("corpora"), {});
  data::ValidationSet set(parts, model.tokenizer, model.config.model.vocab, 32, 4);
  const double before = evaluate(*model.decoder, set, 4).loss;
  EXPECT_NEAR(evaluate_cached(*model.decoder, set, nn::KvFormat::model, 4).loss, before, 1e-5);
  const double rounded = evaluate_cached(*model.decoder, set, nn::KvFormat::int8, 4).loss;
  EXPECT_NE(rounded, before);
  EXPECT_NEAR(rounded, before, 2e-3);
  // Heads of 8 channels in fp32: 8 bytes and a scale instead of 32.
  EXPECT_LT(model.decoder->make_cache(64, nn::KvFormat::int8).num_bytes(),
            model.decoder->make_cache(64).num_bytes() / 2);
}

TEST_F(Quantise, counts_the_memory_of_weights_and_what_a_token_reads) {
  quantise("counted");
  const LoadedModel floats = load_model_to_run(path("float"), at::kCPU);
  const config::ModelConfig& config = floats.config.model;
  ASSERT_GT(config.moe.experts, config.moe.top_k);
  int64_t held = 0, of_experts = 0, products = 0;
  for (const nn::Param& param : floats.decoder->params().params()) {
    const auto bytes = static_cast<int64_t>(param.value.nbytes());
    held += bytes;
    of_experts += param.spec.klass == nn::ParamClass::expert ? bytes : 0;
    products += param.spec.is_product ? bytes : 0;
  }
  const int64_t embedding = config.tied_embeddings ? 0 : 4 * config.vocab * config.dim;
  const nn::WeightBytes before = nn::weight_bytes(*floats.decoder);
  EXPECT_EQ(before.held, held);
  EXPECT_EQ(before.products, products);
  EXPECT_EQ(before.product_values, products / 4);
  EXPECT_EQ(before.read_per_token,
            held - embedding - of_experts + of_experts * config.moe.top_k / config.moe.experts);
  const nn::WeightBytes after = nn::weight_bytes(*load_model_to_run(path("counted"), at::kCPU).decoder);
  EXPECT_EQ(after.product_values, before.product_values);
  EXPECT_EQ(after.held - after.products, before.held - before.products);
  EXPECT_GT(after.products, after.product_values);  // a byte for each, and scales
  EXPECT_LT(after.products, before.products / 2);
  EXPECT_LT(after.read_per_token, before.read_per_token);
}

TEST_F(Quantise, says_how_long_prompt_and_tokens_took) {
  const LoadedModel model = load_model_to_run(path("float"), at::kCPU);
  nn::GenerationTimes times;
  nn::GenerateOptions options;
  options.max_tokens = 5;
  options.times = &times;
  nn::generate(*model.decoder, {115, 117, 110}, options, [](int64_t) { return true; });
  EXPECT_EQ(times.prompt_tokens, 3);
  EXPECT_EQ(times.tokens, 5);
  EXPECT_GT(times.prompt_seconds, 0);
  EXPECT_GT(times.seconds, 0);
}

TEST_F(Quantise, generates_the_same_with_and_without_a_cache) {
  quantise("generates");
  const LoadedModel model = load_model_to_run(path("generates"), at::kCPU);
  std::vector<int64_t> texts[2];
  for (const bool cache : {false, true}) {
    nn::GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_tokens = 24;
    options.use_cache = cache;
    nn::generate(*model.decoder, {115, 117, 110, 32}, options, [&](int64_t token) {
      texts[cache].push_back(token);
      return true;
    });
  }
  EXPECT_EQ(texts[0], texts[1]);
}

TEST_F(Quantise, writes_the_same_bytes_again) {
  quantise("first");
  quantise("second");
  const std::string file = "checkpoints/step-000060/model-00001-of-00001.safetensors";
  EXPECT_EQ(read_file(path("first") / file), read_file(path("second") / file));
  EXPECT_THAT(read_file(path("first") / "quantisation.json"), HasSubstr("\"scheme\": \"int8-w8a8\""));
}

TEST_F(Quantise, goes_on_where_it_was_stopped) {
  const std::string file = "checkpoints/step-000060/model-00001-of-00001.safetensors";
  for (const std::string scheme : {"int8-w8a8", "int4-w4a16"}) {
    quantise("whole-" + scheme, scheme);
    QuantiseOptions options;
    options.from = path("float");
    options.to = path("stopped-" + scheme);
    options.scheme = scheme;
    int num_seen = 0;
    options.progress = [&](const std::string&, int64_t index, int64_t count) {
      if (index > count / 2) throw std::runtime_error("killed");
      ++num_seen;
    };
    EXPECT_THROW(quantise_run(options), std::runtime_error);
    EXPECT_FALSE(fs::exists(options.to));
    options.progress = {};
    const QuantiseResult result = quantise_run(options);
    EXPECT_GT(result.num_resumed, 0);
    EXPECT_LT(result.num_resumed, static_cast<int64_t>(result.weights.size()));
    EXPECT_EQ(read_file(options.to / file), read_file(path("whole-" + scheme) / file));
    EXPECT_EQ(read_file(options.to / "quantisation.json"),
              read_file(path("whole-" + scheme) / "quantisation.json"));
    EXPECT_FALSE(fs::exists(path("stopped-" + scheme + ".quantising")));
  }
  // Work for another scheme is of no use.
  QuantiseOptions options;
  options.from = path("float");
  options.to = path("changed");
  options.progress = [](const std::string&, int64_t index, int64_t count) {
    if (index + 1 == count) throw std::runtime_error("killed");
  };
  EXPECT_THROW(quantise_run(options), std::runtime_error);
  options.progress = {};
  options.scheme = "int8-w8a16";
  EXPECT_EQ(quantise_run(options).num_resumed, 0);
  options.to = path("grouped");
  options.scheme = "int4-w4a16";
  options.group = 100;
  EXPECT_THAT(message_of<UserError>([&] { quantise_run(options); }),
              AllOf(HasSubstr("100"), HasSubstr("multiple of 64")));
}

TEST_F(Quantise, refuses_what_it_cannot_do) {
  EXPECT_THAT(
      message_of<UserError>([] { quantise("never", "int8-w8a7"); }),
      AllOf(HasSubstr("'int8-w8a7'"), HasSubstr("did you mean 'int8-w8a8'?"), HasSubstr("int8-w8a16")));
  EXPECT_FALSE(fs::exists(path("never")));
  quantise("once");
  QuantiseOptions again;
  again.from = path("once");
  again.to = path("twice");
  EXPECT_THAT(
      message_of<UserError>([&] { quantise_run(again); }),
      AllOf(HasSubstr("is quantised already"), HasSubstr("int8-w8a8"), HasSubstr("float checkpoint")));
  EXPECT_FALSE(fs::exists(path("twice")));
}

TEST_F(Quantise, a_quantised_run_is_not_taken_for_a_float_one) {
  quantise("held");
  EXPECT_THAT(message_of<UserError>([] { load_model(path("held"), at::kCPU); }),
              AllOf(HasSubstr("is quantised"), HasSubstr("name the float run")));
  EXPECT_THAT(message_of<UserError>([] { map_model(path("held")); }), HasSubstr("is quantised"));
}

TEST_F(Quantise, reports_what_the_weights_are_multiplied_with) {
  QuantiseOptions options;
  options.from = path("float");
  options.to = path("calibrated");
  options.calibration = path("text.txt");
  const QuantiseResult result = quantise_run(options);
  EXPECT_GE(result.calibration_tokens, 512);
  for (const QuantisedWeight& weight : result.weights) {
    EXPECT_GT(weight.input_rows, 0) << weight.name;
    EXPECT_GT(weight.input_range, 0) << weight.name;
    EXPECT_GT(weight.input_peak_ratio, 1) << weight.name;
    EXPECT_GT(weight.input_error, 1e-4) << weight.name;
    EXPECT_LT(weight.input_error, 5e-2) << weight.name;
  }
  quantise("uncalibrated");
  const std::string file = "checkpoints/step-000060/model-00001-of-00001.safetensors";
  EXPECT_EQ(read_file(path("calibrated") / file), read_file(path("uncalibrated") / file));

  write_file_atomic(path("short.txt"), "sun moon tide salt");
  options.to = path("too-short");
  options.calibration = path("short.txt");
  EXPECT_THAT(message_of<UserError>([&] { quantise_run(options); }),
              AllOf(HasSubstr("short.txt"), HasSubstr("at least 512"), HasSubstr("longer text")));
  EXPECT_FALSE(fs::exists(path("too-short")));
}

TEST_F(Quantise, names_a_weight_whose_input_is_not_finite) {
  const LoadedModel model = load_model(path("float"), at::kCPU);
  nn::Param* const norm = model.decoder->params().find("layers.0.ffn_norm");
  ASSERT_NE(norm, nullptr);
  norm->value.fill_(INFINITY);
  const ckpt::Checkpoint source = ckpt::open_run_or_checkpoint(path("float"));
  const std::vector<ckpt::TensorGroup> groups{model_group(*model.decoder)};
  ckpt::save_checkpoint(path("infinite"), {60, source.config(), source.state_json()}, groups, {});
  QuantiseOptions options;
  options.from = path("infinite");
  options.to = path("infinite-int8");
  options.calibration = path("text.txt");
  EXPECT_THAT(message_of<UserError>([&] { quantise_run(options); }),
              AllOf(HasSubstr("layers.0.ffn.gate_up"), HasSubstr("not finite on the calibration text")));
}

TEST_F(Quantise, names_a_weight_that_is_not_finite) {
  const LoadedModel model = load_model(path("float"), at::kCPU);
  nn::Param* const param = model.decoder->params().find("layers.1.moe.down");
  ASSERT_NE(param, nullptr);
  param->value.view({-1}).select(0, 31).fill_(INFINITY);
  const ckpt::Checkpoint source = ckpt::open_run_or_checkpoint(path("float"));
  const std::vector<ckpt::TensorGroup> groups{model_group(*model.decoder)};
  ckpt::save_checkpoint(path("broken"), {60, source.config(), source.state_json()}, groups, {});
  QuantiseOptions options;
  options.from = path("broken");
  options.to = path("broken-int8");
  EXPECT_THAT(message_of<UserError>([&] { quantise_run(options); }),
              AllOf(HasSubstr("layers.1.moe.down"), HasSubstr("not finite"), HasSubstr("row 1")));
  EXPECT_FALSE(fs::exists(path("broken-int8")));
}

}  // namespace
}  // namespace moebius::train
