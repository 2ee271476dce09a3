// Runs with [quant]: what they learn, report and remember.
#include "train/quantisation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "ckpt/folder.h"
#include "data/prepare.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/quantised_evaluation.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

nlohmann::json last_line_of(const fs::path& run) {
  std::ifstream file(run / "metrics.jsonl");
  std::string line, last;
  while (std::getline(file, line)) last = line;
  return nlohmann::json::parse(last);
}

data::ValidationSet validation_of(const LoadedModel& model, const TestFolder& folder) {
  data::Sources sources = data::open_sources(model.config.data, folder / "corpora");
  return {sources.validation, model.tokenizer, model.config.model.vocab, 32, 2};
}

QuantisedEvaluation quantised_loss(const fs::path& run, const TestFolder& folder,
                                   const std::vector<std::string>& overrides) {
  const LoadedModel model =
      overrides.empty() ? load_model_to_run(run, at::kCPU) : load_model_quantised(run, at::kCPU, overrides);
  data::ValidationSet set = validation_of(model, folder);
  if (!model.quantisation->quantiser().ranges_are_known())
    calibrate(*model.decoder, *model.quantisation, set);
  return evaluate_quantised(*model.decoder, *model.quantisation, set);
}

TEST(Quantisation, training_with_two_bits_loses_less_than_rounding_afterwards) {
  const TestFolder folder;
  train(tiny_run(folder, "float", 60));
  const auto tuned = [&](const std::string& name) {
    TrainOptions options = tiny_run(folder, name, 40);
    options.config.train.initial_weights = (folder / "float").string();
    options.config.optimizer.lr = 2e-3;
    options.config.schedule.kind = "cosine";
    return options;
  };
  train(tuned("control"));
  const std::vector<std::string> two_bits = {"quant.scheme=int8", "quant.weight_bits=2",
                                             "quant.weight_scale=tensor", "quant.activation_scale=tensor",
                                             "quant.calibration_batches=1"};
  const QuantisedEvaluation rounded = quantised_loss(folder / "control", folder, two_bits);
  EXPECT_GT(rounded.difference, 0);
  EXPECT_GT(rounded.difference_error, 0);
  EXPECT_LT(rounded.same_token, 1);
  EXPECT_GT(rounded.flipped_tokens.value(), 0);

  for (const std::string compensation : {"none", "uniform"}) {
    TrainOptions options = tuned("trained-" + compensation);
    config::QuantConfig& quant = options.config.quant;
    quant.scheme = "int8";
    quant.weight_bits = 2;
    quant.weight_scale = quant.activation_scale = "tensor";
    quant.compensation = compensation;
    quant.share = 0.5;
    const TrainResult result = train(options);
    const QuantisedEvaluation trained = quantised_loss(options.run_dir, folder, {});
    EXPECT_LT(trained.quantised.loss, rounded.quantised.loss) << compensation;
    // The run reports both losses, and its checkpoint gives them again: remembered ranges are part of it.
    const nlohmann::json line = last_line_of(options.run_dir);
    EXPECT_DOUBLE_EQ(line["validation_loss"].get<double>(), *result.validation_loss);
    EXPECT_DOUBLE_EQ(trained.quantised.loss, *result.validation_loss);
    EXPECT_DOUBLE_EQ(line["validation_float_loss"].get<double>(), *trained.quantised.float_loss);
    EXPECT_NE(trained.quantised.loss, *trained.quantised.float_loss);
  }
}

TEST(Quantisation, compensation_ends_in_hard_rounding) {
  TestFolder folder;
  config::RunConfig config = tiny_run(folder, "run", 100).config;
  config.model.vocab = 256;
  EXPECT_EQ(Quantisation::attach(config, *make_model(config, at::kCPU)), nullptr);
  config.quant.scheme = "int8";
  config.quant.anneal_fraction = 0.2;
  const auto model = make_model(config, at::kCPU);
  const auto quantisation = Quantisation::attach(config, *model);
  // Two attention layers of two products, the dense layer's two, the experts' and the shared ones'.
  EXPECT_EQ(quantisation->num_products(), 10);
  EXPECT_EQ(model->params().find("layers.1.moe.router")->product, nullptr);
  EXPECT_EQ(model->params().find("embedding")->product, nullptr);
  EXPECT_EQ(quantisation->compensation_in(1), 1);
  EXPECT_EQ(quantisation->compensation_in(80), 1);
  EXPECT_DOUBLE_EQ(quantisation->compensation_in(90), 0.5);
  EXPECT_EQ(quantisation->compensation_in(100), 0);
  config.quant.classes = {"experts"};
  EXPECT_EQ(Quantisation::attach(config, *make_model(config, at::kCPU))->num_products(), 2);
}

// Every form of state: running ranges, learned steps with their optimizer, carried errors; compensation that
// falls, a start that comes later, and layers that are computed twice.
TEST(Quantisation, resumes_bit_for_bit) {
  for (const auto& [range, compensation, recompute] :
       std::vector<std::array<std::string, 3>>{{"minmax", "uniform", "none"},
                                               {"learned", "gaussian", "full"},
                                               {"mse", "error_feedback", "none"}}) {
    const TestFolder folder;
    TrainOptions options = tiny_run(folder, "run", 12);
    options.config.checkpoint.every = 5;
    options.config.train.recompute = recompute;
    config::QuantConfig& quant = options.config.quant;
    quant.scheme = "int8";
    quant.weight_bits = 4;
    quant.activation_scale = "tensor";
    quant.range = range;
    quant.compensation = compensation;
    quant.anneal_fraction = 0.5;
    quant.start_step = 3;
    train(options);
    TrainOptions again = options;
    again.run_dir = folder / "again";
    fs::copy(options.run_dir, again.run_dir, fs::copy_options::recursive);
    for (const int64_t step : {10, 12}) fs::remove_all(ckpt::step_dir(again.run_dir, step));
    again.mode = RunMode::resume;
    train(again);
    int num_files = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(ckpt::step_dir(options.run_dir, 12))) {
      const fs::path other = ckpt::step_dir(again.run_dir, 12) / entry.path().filename();
      EXPECT_TRUE(read_file(entry.path()) == read_file(other)) << range << ": " << other;
      ++num_files;
    }
    EXPECT_GE(num_files, 4) << "the state of the quantisation too";
  }
}

TEST(Quantisation, recomputed_layers_draw_the_same_noise) {
  const TestFolder folder;
  std::vector<double> losses;
  for (const std::string recompute : {"none", "selective", "full"}) {
    TrainOptions options = tiny_run(folder, "run-" + recompute, 5);
    options.config.train.recompute = recompute;
    options.config.quant.scheme = "int8";
    options.config.quant.weight_bits = 4;
    options.config.quant.compensation = "uniform";
    losses.push_back(train(options).train_loss);
  }
  EXPECT_EQ(losses[1], losses[0]);
  EXPECT_EQ(losses[2], losses[0]);
}

TEST(Quantisation, says_what_cannot_be_calibrated) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 2);
  train(options);
  EXPECT_THAT(message_of<UserError>([&] {
                quantised_loss(
                    options.run_dir, folder,
                    {"quant.scheme=int8", "quant.activation_scale=tensor", "quant.calibration_batches=5000"});
              }),
              HasSubstr("quant.calibration_batches is 5000, but the text for calibration has only"));
  EXPECT_THAT(
      message_of<UserError>([&] { load_model_quantised(options.run_dir, at::kCPU, {"train.steps=3"}); }),
      HasSubstr("only fields of [quant] can be set"));
  LoadedModel model = load_model_quantised(
      options.run_dir, at::kCPU,
      {"quant.scheme=int8", "quant.activation_scale=tensor", "quant.calibration_batches=1"});
  model.decoder->params().find("layers.0.ffn.down")->value[1][2] = INFINITY;
  data::ValidationSet set = validation_of(model, folder);
  EXPECT_THAT(message_of<UserError>([&] { calibrate(*model.decoder, *model.quantisation, set); }),
              HasSubstr("no finite range for layers.0.ffn.down"));
  options.mode = RunMode::resume;
  options.config.train.steps = 4;
  options.config.quant.scheme = "int8";
  EXPECT_THAT(message_of<UserError>([&] { train(options); }), HasSubstr("quant.scheme"));
}

TEST(Quantisation, the_error_of_a_mean_is_that_of_a_ratio) {
  // Equal parts: the usual error of a mean.
  EXPECT_NEAR(error_of_mean({1, 2, 3, 4}, {2, 2, 2, 2}), std::sqrt(5.0 / 3 / 4) / 2, 1e-12);
  EXPECT_EQ(error_of_mean({1, 3}, {2, 6}), 0) << "the same mean in both parts";
  EXPECT_EQ(error_of_mean({1}, {2}), 0);
}

}  // namespace
}  // namespace moebius::train
