#include "cli/eval_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
#include "data/prepare.h"
#include "ops/device.h"
#include "train/evaluate.h"
#include "train/model_files.h"

namespace moebius::cli {
namespace {

namespace fs = std::filesystem;

struct EvalArguments {
  std::string path, file, device = "auto";
  int64_t batches = 0;
  int threads = 0;
  bool json = false;
};

// Where corpora of a run's texts lie: beside the run.
fs::path cache_of(const train::LoadedModel& model) {
  const fs::path run = fs::absolute(model.checkpoint).parent_path().parent_path();
  return run.parent_path() / "corpora";
}

std::vector<data::ValidationSet::Part> parts_of(const EvalArguments& arguments,
                                                const train::LoadedModel& model) {
  if (!model.tokenizer)
    throw_user_error(arguments.path, " was trained on synthetic tokens; there is no text to evaluate it on");
  const data::BuildProgress progress = data::show_build_progress();
  if (!arguments.file.empty())
    return data::open_for_evaluation(arguments.file, model.tokenizer, cache_of(model), progress);
  config::DataConfig config = model.config.data;
  config.tokenizer = model.tokenizer_spec;  // the run's own copy, wherever the original is by now
  data::Sources sources = data::open_sources(config, cache_of(model), progress);
  if (sources.validation.empty())
    throw_user_error(arguments.path, " was trained without a validation split; name a text with --data");
  return sources.validation;
}

void run_eval(const EvalArguments& arguments) {
  ops::load_cuda_plugin();
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  const train::LoadedModel model =
      train::load_model_to_run(arguments.path, ops::choose_device(arguments.device));
  const config::TrainSection& section = model.config.train;
  data::ValidationSet set(parts_of(arguments, model), model.tokenizer, model.config.model.vocab,
                          section.sequence, section.micro_batch > 0 ? section.micro_batch : section.batch);
  const train::Evaluation result = train::evaluate(*model.decoder, set, arguments.batches);
  if (arguments.json) {
    nlohmann::ordered_json json;
    json["checkpoint"] = model.checkpoint.string();
    json["step"] = model.step;
    json["loss"] = result.loss;
    json["perplexity"] = result.perplexity;
    if (result.bits_per_byte > 0) json["bits_per_byte"] = result.bits_per_byte;
    json["tokens"] = result.num_targets;
    if (model.config.model.moe.experts > 0) json["max_violation"] = result.max_violation;
    std::cout << json.dump(2) << "\n";
    return;
  }
  std::printf("%s, step %lld\n", model.checkpoint.c_str(), static_cast<long long>(model.step));
  std::printf("loss           %.6f nats per token, over %lld tokens\n", result.loss,
              static_cast<long long>(result.num_targets));
  std::printf("perplexity     %.4f\n", result.perplexity);
  if (result.bits_per_byte > 0) std::printf("bits per byte  %.4f\n", result.bits_per_byte);
  if (model.config.model.moe.experts > 0)
    std::printf("max violation  %.3f (expert load of the worst layer over the whole text)\n",
                result.max_violation);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "Loss, perplexity and bits per byte of a trained model");
  auto arguments = std::make_shared<EvalArguments>();
  command->add_option("run", arguments->path, "Run folder or checkpoint")->required();
  command->add_option("--data", arguments->file,
                      "Text file or corpus (.idx) instead of the run's validation split");
  command->add_option("--batches", arguments->batches, "Only the first batches; 0: all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--device", arguments->device, "cpu, cuda or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments] { run_eval(*arguments); });
}

}  // namespace moebius::cli
