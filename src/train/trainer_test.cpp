#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/interrupt.h"
#include "ckpt/folder.h"
#include "data/prepare.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/sample.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::vector<nlohmann::json> metrics_of(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(run / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

nlohmann::json summary_of(const fs::path& run) {
  return nlohmann::json::parse(read_file(run / "summary.json"));
}

// Every file of the two checkpoints has the same bytes.
void expect_equal_checkpoints(const fs::path& a, const fs::path& b) {
  int num_files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(a)) {
    const fs::path other = b / entry.path().filename();
    ASSERT_TRUE(fs::exists(other)) << other;
    EXPECT_TRUE(read_file(entry.path()) == read_file(other)) << entry.path() << " and " << other << " differ";
    ++num_files;
  }
  EXPECT_GE(num_files, 3);
}

TEST(Trainer, learns_and_writes_its_results) {
  const TestFolder folder;
  const TrainOptions options = tiny_run(folder, "run", 60);
  const TrainResult result = train(options);
  EXPECT_EQ(result.steps, 60);
  EXPECT_FALSE(result.interrupted);
  const auto lines = metrics_of(options.run_dir);
  ASSERT_EQ(lines.size(), 60u);
  EXPECT_NEAR(lines.front()["loss"].get<double>(), std::log(256.0), 0.2);
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.6 * lines.front()["loss"].get<double>());
  EXPECT_EQ(lines.back()["tokens"], 60 * 4 * 32);
  ASSERT_EQ(lines.back()["layers"].size(), 1u) << "layer 0 is dense";
  EXPECT_EQ(lines.back()["layers"][0]["load"].size(), 4u);
  EXPECT_EQ(lines.back()["layers"][0]["dropped_slots"], 0);
  EXPECT_GT(lines.back()["layers"][0]["entropy"], 0.5);

  const nlohmann::json summary = summary_of(options.run_dir);
  EXPECT_EQ(summary["steps"], 60);
  EXPECT_EQ(summary["tokens"], 60 * 4 * 32);
  EXPECT_NEAR(summary["bits_per_byte"].get<double>(),
              summary["validation_loss"].get<double>() / std::log(2.0), 1e-9);
  EXPECT_NEAR(summary["validation_loss"].get<double>(), *result.validation_loss, 1e-12);
  for (const char* key :
       {"train_seconds", "tokens_per_second", "model_tflops", "peak_memory_bytes", "max_violation"})
    EXPECT_TRUE(summary.contains(key)) << key;
  EXPECT_FALSE(summary.contains("mfu")) << "no peak is known for a CPU";
  EXPECT_TRUE(fs::exists(options.run_dir / "config.toml"));
}

TEST(Trainer, multi_token_prediction_learns_beside_the_model) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 60);
  options.config.model.mtp.depth = 1;
  const TrainResult result = train(options);
  const auto lines = metrics_of(options.run_dir);
  ASSERT_EQ(lines.size(), 60u);
  // 31 of 32 targets have one behind them.
  EXPECT_NEAR(lines.front()["mtp_loss"].get<double>(), std::log(256.0) * 31 / 32, 0.2);
  EXPECT_LT(lines.back()["mtp_loss"].get<double>(), 0.6 * lines.front()["mtp_loss"].get<double>());
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.6 * lines.front()["loss"].get<double>());
  ASSERT_EQ(lines.back()["layers"].size(), 2u) << "the further block has experts";
  EXPECT_EQ(lines.back()["layers"][1]["layer"], 2);
  EXPECT_TRUE(result.validation_loss.has_value());
}

TEST(Trainer, resumes_bit_for_bit) {
  for (const auto& [precision, depth] :
       std::vector<std::pair<std::string, int64_t>>{{"fp32", 0}, {"bf16", 0}, {"fp32", 1}}) {
    const TestFolder folder;
    TrainOptions straight = tiny_run(folder, "straight", 20), parts = tiny_run(folder, "parts", 10);
    straight.config.train.precision = parts.config.train.precision = precision;
    straight.config.model.mtp.depth = parts.config.model.mtp.depth = depth;
    straight.config.checkpoint.every = parts.config.checkpoint.every = 10;
    train(straight);
    train(parts);
    parts.config.train.steps = 20;
    parts.mode = RunMode::resume;
    train(parts);
    const auto one = metrics_of(straight.run_dir), two = metrics_of(parts.run_dir);
    ASSERT_EQ(one.size(), two.size());
    for (size_t i = 0; i < one.size(); ++i) EXPECT_EQ(one[i]["loss"], two[i]["loss"]) << "step " << i + 1;
    expect_equal_checkpoints(ckpt::step_dir(straight.run_dir, 20), ckpt::step_dir(parts.run_dir, 20));
    EXPECT_EQ(summary_of(straight.run_dir)["tokens"], summary_of(parts.run_dir)["tokens"]);
  }
}

TEST(Trainer, begins_with_the_weights_of_another_run_and_then_needs_it_no_more) {
  const TestFolder folder;
  train(tiny_run(folder, "first", 3));
  write_file_atomic(folder / "first/hf/config.json", "{}");
  TrainOptions options = tiny_run(folder, "second", 2);
  options.config.train.initial_weights = (folder / "first").string();
  options.config.optimizer.lr = 0;
  train(options);
  const LoadedModel first = load_model(folder / "first", at::kCPU),
                    second = load_model(folder / "second", at::kCPU);
  for (const nn::Param& param : first.decoder->params().params()) {
    if (param.spec.is_buffer) continue;
    EXPECT_TRUE(at::equal(param.value, second.decoder->params().find(param.spec.name)->value))
        << param.spec.name;
  }
  EXPECT_EQ(read_file(folder / "second/hf/config.json"), "{}");

  std::filesystem::remove_all(folder / "first");
  options.mode = RunMode::resume;
  options.config.train.steps = 4;
  EXPECT_EQ(train(options).steps, 4);

  TrainOptions other = tiny_run(folder, "third", 2);
  other.config.train.initial_weights = (folder / "second").string();
  other.config.model.moe.experts = 8;
  try {
    train(other);
    FAIL() << "nothing was refused";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("model.moe.experts: 4 -> 8"), std::string::npos) << error.what();
  }
}

TEST(Trainer, micro_batches_and_recomputation_change_no_result) {
  const TestFolder folder;
  std::vector<double> losses;
  for (const auto& [micro, recompute] : std::vector<std::pair<int64_t, std::string>>{
           {4, "none"}, {2, "none"}, {4, "selective"}, {4, "full"}}) {
    TrainOptions options = tiny_run(folder, "run-" + std::to_string(micro) + recompute, 8);
    options.config.model.moe.balance = {.aux_loss = 0};  // depends on the micro-batch by definition
    options.config.train.micro_batch = micro;
    options.config.train.recompute = recompute;
    losses.push_back(train(options).train_loss);
  }
  EXPECT_NEAR(losses[1], losses[0], 1e-5) << "accumulation";
  EXPECT_EQ(losses[2], losses[0]) << "selective recomputation";
  EXPECT_EQ(losses[3], losses[0]) << "full recomputation";
}

TEST(Trainer, stops_after_steps_that_are_not_finite_and_says_where) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 30);
  options.config.train.max_skipped = 3;
  options.config.optimizer.lr = 100;
  options.config.optimizer.grad_clip = 0;
  options.config.model.norm_eps = 0;
  options.config.model.init_std = 10;
  options.config.optimizer.weight_decay = 10;  // multiplies weights by 1 - 1000 in a step
  const std::string message = message_of<TrainingFailed>([&] { train(options); });
  EXPECT_THAT(message, HasSubstr("not finite in 3 steps in a row"));
  EXPECT_THAT(message, HasSubstr("first tensor that is not finite: "));
  EXPECT_THAT(message,
              testing::ContainsRegex("(output of layers|output of final_norm|parameter|gradient of|loss)"));
  const auto lines = metrics_of(options.run_dir);
  EXPECT_EQ(lines.back()["skipped"], true);
}

TEST(Trainer, an_interrupt_saves_and_the_run_goes_on_bit_for_bit) {
  const TestFolder folder;
  TrainOptions straight = tiny_run(folder, "straight", 12), stopped = tiny_run(folder, "stopped", 12);
  train(straight);
  std::thread impatient([&] {
    while (!fs::exists(stopped.run_dir / "metrics.jsonl") ||
           fs::file_size(stopped.run_dir / "metrics.jsonl") == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    request_interrupt();
  });
  const TrainResult result = train(stopped);
  impatient.join();
  if (result.interrupted) {
    EXPECT_LT(result.steps, 12);
    EXPECT_EQ(summary_of(stopped.run_dir)["interrupted"], true);
    stopped.mode = RunMode::resume;
    train(stopped);
  }
  expect_equal_checkpoints(ckpt::step_dir(straight.run_dir, 12), ckpt::step_dir(stopped.run_dir, 12));
}

TEST(Trainer, checkpoints_give_the_model_back) {
  const TestFolder folder;
  const TrainOptions options = tiny_run(folder, "run", 10);
  const TrainResult result = train(options);
  const LoadedModel model = load_model(options.run_dir, at::kCPU);
  EXPECT_EQ(model.step, 10);
  data::Sources sources = data::open_sources(model.config.data, folder / "corpora");
  data::ValidationSet set(sources.validation, model.tokenizer, model.config.model.vocab, 32, 2);
  EXPECT_DOUBLE_EQ(evaluate(*model.decoder, set).loss, *result.validation_loss);

  SampleOptions sample;
  sample.prompt = "sun moon";
  sample.generate.max_tokens = 40;
  sample.generate.sampling.temperature = 0;
  const std::string cached = sample_text(*model.decoder, *model.tokenizer, sample);
  sample.generate.use_cache = false;
  EXPECT_EQ(sample_text(*model.decoder, *model.tokenizer, sample), cached);
  // Bytes are their own ids: a text ends before the first of the tokens that end it.
  const std::string written = cached.substr(sample.prompt.size());
  ASSERT_GT(written.size(), 8);
  sample.end_ids = {static_cast<unsigned char>(written[8]), 255};
  EXPECT_EQ(sample_text(*model.decoder, *model.tokenizer, sample),
            cached.substr(0, sample.prompt.size() + written.find(written[8])));
  sample.end_ids.clear();
  sample.generate.sampling = {.temperature = 1, .top_k = 5, .top_p = 0.9, .seed = 3};
  EXPECT_EQ(sample_text(*model.decoder, *model.tokenizer, sample),
            sample_text(*model.decoder, *model.tokenizer, sample));
}

TEST(Trainer, refuses_to_resume_another_model) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 4);
  train(options);
  options.mode = RunMode::resume;
  options.config.train.steps = 8;
  options.config.model.dim = 64;
  options.config.train.precision = "bf16";
  const std::string message = message_of<UserError>([&] { train(options); });
  EXPECT_THAT(message, HasSubstr("another model or state"));
  EXPECT_THAT(message, HasSubstr("model.dim: 32 -> 64"));
  EXPECT_THAT(message, HasSubstr("train.precision"));
  options.config = tiny_run(folder, "run", 4).config;
  EXPECT_THAT(message_of<UserError>([&] { train(options); }), HasSubstr("raise it with --set train.steps=N"));
}

TEST(Trainer, a_full_disk_costs_the_checkpoint_and_not_the_one_before) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 4);
  options.config.checkpoint.background = false;
  train(options);
  options.mode = RunMode::resume;
  options.config.train.steps = 8;
  std::string message;
  {
    const ScopedDiskLimit full(100'000);
    message = message_of<UserError>([&] { train(options); });
  }
  EXPECT_THAT(message, HasSubstr("step-000004"));
  EXPECT_EQ(ckpt::list_steps(options.run_dir), std::vector<int64_t>{4});
  train(options);  // with room again
  EXPECT_EQ(ckpt::list_steps(options.run_dir).front(), 8);
}

TEST(Trainer, traces_the_steps_asked_for) {
  const TestFolder folder;
  TrainOptions options = tiny_run(folder, "run", 6);
  options.trace = true;
  options.config.train.trace_first = 2;
  options.config.train.trace_steps = 2;
  train(options);
  const auto trace = nlohmann::json::parse(read_file(options.run_dir / "trace.json"));
  std::map<std::string, int> spans;
  for (const auto& event : trace["traceEvents"])
    if (event["ph"] == "X") ++spans[event["name"].get<std::string>()];
  EXPECT_EQ(spans["step"], 2);
  EXPECT_EQ(spans["forward"], 4) << "two micro-batches a step";
  EXPECT_EQ(spans["backward"], 4);
  EXPECT_EQ(spans["optimizer"], 2);
}

TEST(Trainer, a_bias_that_answers_forecasts_resumes_bit_for_bit_and_reports_their_errors) {
  const TestFolder folder;
  const auto options_of = [&](const std::string& name, int64_t steps) {
    TrainOptions options = tiny_run(folder, name, steps);
    options.config.model.moe.balance.bias_rate = 0.01;
    options.config.model.moe.balance.bias_rule = "forecast";
    options.config.train.forecast_horizon = 3;
    return options;
  };
  const TrainOptions straight = options_of("straight", 10);
  train(straight);
  TrainOptions parts = options_of("parts", 4);
  train(parts);
  parts.config.train.steps = 10;
  parts.mode = RunMode::resume;
  train(parts);
  const auto name = ckpt::step_dir({}, 10);
  for (const auto& entry : std::filesystem::directory_iterator(straight.run_dir / name)) {
    const auto other = parts.run_dir / name / entry.path().filename();
    EXPECT_TRUE(read_file(entry.path()) == read_file(other)) << other;
  }
  std::vector<nlohmann::json> errors[2];
  for (int i = 0; i < 2; ++i) {
    std::ifstream file((i == 0 ? straight : parts).run_dir / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("forecast_error")) errors[i].push_back(json["forecast_error"]["last"]);
    }
  }
  ASSERT_EQ(errors[0].size(), 7u) << "from the fourth step on";
  ASSERT_EQ(errors[1].size(), 7u);
  for (size_t i = 0; i < 7; ++i) {
    // What a resumed run replays is rounded to four digits.
    EXPECT_NEAR(errors[0][i].get<double>(), errors[1][i].get<double>(), 2e-3);
    EXPECT_GT(errors[0][i].get<double>(), 0);
  }
}

}  // namespace
}  // namespace moebius::train
