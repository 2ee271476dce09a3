#include "cli/eval_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "cli/number_checks.h"
#include "data/prepare.h"
#include "ops/device.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/quantised_evaluation.h"
#include "train/sample.h"

namespace moebius::cli {
namespace {

namespace fs = std::filesystem;

struct EvalArguments {
  std::string path, file, device = "auto", calibration, parts, likeliest;
  std::string prompts, continuations;
  std::vector<int64_t> beams = {1};
  int64_t tokens = 100;
  std::string cache;
  std::vector<std::string> overrides;
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

void calibrate_with(const EvalArguments& arguments, const train::LoadedModel& model,
                    data::ValidationSet& evaluated) {
  if (arguments.calibration.empty()) {
    train::calibrate(*model.decoder, *model.quantisation, evaluated);
    return;
  }
  const config::TrainSection& section = model.config.train;
  data::ValidationSet set(data::open_for_evaluation(arguments.calibration, model.tokenizer, cache_of(model),
                                                    data::show_build_progress()),
                          model.tokenizer, model.config.model.vocab, section.sequence,
                          section.micro_batch > 0 ? section.micro_batch : section.batch);
  train::calibrate(*model.decoder, *model.quantisation, set);
}

// One line for each part of a document: {"loss": sum, "tokens": count}.
void write_parts(const std::string& path, const std::vector<train::PartLoss>& parts) {
  std::string text;
  for (const train::PartLoss& part : parts)
    text += nlohmann::ordered_json({{"loss", part.loss}, {"tokens", part.num_targets}}).dump() + "\n";
  write_file_atomic(path, text);
}

// The likeliest token for each target, one id a line.
void write_tokens(const std::string& path, const std::vector<at::Tensor>& batches) {
  std::string text;
  for (const at::Tensor& ids_T : batches) {
    if (!ids_T.defined()) continue;
    const auto* const ids = ids_T.const_data_ptr<int32_t>();
    for (int64_t i = 0; i < ids_T.numel(); ++i) text += std::to_string(ids[i]) + "\n";
  }
  write_file_atomic(path, text);
}

nlohmann::ordered_json json_of(const train::QuantisedEvaluation& evaluation) {
  nlohmann::ordered_json json;
  json["float_loss"] = *evaluation.quantised.float_loss;
  json["difference"] = evaluation.difference;
  json["difference_error"] = evaluation.difference_error;
  json["same_token"] = evaluation.same_token;
  if (evaluation.flipped_decisions) {
    json["flipped_decisions"] = *evaluation.flipped_decisions;
    json["flipped_tokens"] = *evaluation.flipped_tokens;
  }
  return json;
}

// The continuations of every line, a file for each width of the beam.
void write_continuations(const EvalArguments& arguments, const train::LoadedModel& model) {
  nn::BatchGenerateOptions options;
  options.max_tokens = arguments.tokens;
  options.end_ids = train::carried_end_ids(model.run_dir(), model.config.model.vocab);
  const std::string prompts = read_file(arguments.prompts);
  for (const int64_t beams : arguments.beams) {
    options.beams = beams;
    std::string text;
    for (const std::string& line : train::continue_lines(*model.decoder, *model.tokenizer, prompts, options))
      text += line + "\n";
    write_file_atomic(arguments.continuations + "." + std::to_string(beams), text);
  }
}

void run_eval(const EvalArguments& arguments) {
  ops::load_cuda_plugin();
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  const at::Device device = ops::choose_device(arguments.device);
  const train::LoadedModel model =
      arguments.overrides.empty() ? train::load_model_to_run(arguments.path, device)
                                  : train::load_model_quantised(arguments.path, device, arguments.overrides);
  const config::TrainSection& section = model.config.train;
  data::ValidationSet set(parts_of(arguments, model), model.tokenizer, model.config.model.vocab,
                          section.sequence, section.micro_batch > 0 ? section.micro_batch : section.batch);
  std::vector<train::PartLoss> parts;
  std::vector<at::Tensor> tokens;
  std::optional<train::QuantisedEvaluation> quantised;
  train::Evaluation result;
  if (model.quantisation && !model.quantisation->quantiser().ranges_are_known())
    calibrate_with(arguments, model, set);
  if (!arguments.cache.empty()) {
    if (model.quantisation) model.quantisation->evaluate_quantised();
    train::EvaluationDetails details;
    details.parts = arguments.parts.empty() ? nullptr : &parts;
    details.likeliest_tokens = arguments.likeliest.empty() ? nullptr : &tokens;
    result = train::evaluate_cached(*model.decoder, set, nn::kv_format_named(arguments.cache),
                                    arguments.batches, details);
  } else if (model.quantisation) {
    quantised = train::evaluate_quantised(*model.decoder, *model.quantisation, set, arguments.batches);
    result = quantised->quantised;
    parts = quantised->parts;
    tokens = quantised->tokens;
  } else {
    train::EvaluationDetails details;
    details.parts = arguments.parts.empty() ? nullptr : &parts;
    details.likeliest_tokens = arguments.likeliest.empty() ? nullptr : &tokens;
    result = train::evaluate(*model.decoder, set, arguments.batches, nullptr, details);
  }
  if (!arguments.parts.empty()) write_parts(arguments.parts, parts);
  if (!arguments.likeliest.empty()) write_tokens(arguments.likeliest, tokens);
  if (!arguments.prompts.empty()) write_continuations(arguments, model);
  if (arguments.json) {
    nlohmann::ordered_json json;
    json["checkpoint"] = model.checkpoint.string();
    json["step"] = model.step;
    json["loss"] = result.loss;
    json["perplexity"] = result.perplexity;
    if (result.bits_per_byte > 0) json["bits_per_byte"] = result.bits_per_byte;
    json["tokens"] = result.num_targets;
    if (model.config.model.moe.experts > 0 && arguments.cache.empty())
      json["max_violation"] = result.max_violation;
    if (quantised) json["quantised"] = json_of(*quantised);
    std::cout << json.dump(2) << "\n";
    return;
  }
  std::printf("%s, step %lld\n", model.checkpoint.c_str(), static_cast<long long>(model.step));
  std::printf("loss           %.6f nats per token, over %lld tokens\n", result.loss,
              static_cast<long long>(result.num_targets));
  std::printf("perplexity     %.4f\n", result.perplexity);
  if (result.bits_per_byte > 0) std::printf("bits per byte  %.4f\n", result.bits_per_byte);
  if (model.config.model.moe.experts > 0 && arguments.cache.empty())
    std::printf("max violation  %.3f (expert load of the worst layer over the whole text)\n",
                result.max_violation);
  if (!quantised) return;
  std::printf("without quantisation %.6f nats per token: difference %+.6f +- %.6f\n", *result.float_loss,
              quantised->difference, quantised->difference_error);
  std::printf("same likeliest token %.3f %%\n", 100 * quantised->same_token);
  if (quantised->flipped_decisions)
    std::printf("other experts  %.3f %% of the decisions, for %.3f %% of the tokens in some layer\n",
                100 * *quantised->flipped_decisions, 100 * *quantised->flipped_tokens);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "Loss, perplexity and bits per byte of a trained model");
  auto arguments = std::make_shared<EvalArguments>();
  command->add_option("run", arguments->path, "Run folder or checkpoint")->required();
  command->add_option("--data", arguments->file,
                      "Text file or corpus (.idx) instead of the run's validation split");
  command->add_option("--batches", arguments->batches, "Only the first batches; 0: all")
      ->check(zero_or_more());
  command->add_option("--device", arguments->device, "cpu, cuda or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(above_zero());
  command
      ->add_option("--set", arguments->overrides,
                   "Quantise the model for this evaluation: quant.scheme=int8 (docs/int8.md)")
      ->allow_extra_args(false);
  command
      ->add_option("--kv-cache", arguments->cache,
                   "Pass the text through a cache, as generation does: model (its dtype) or int8")
      ->check(CLI::IsMember({"model", "int8"}));
  command->add_option("--calibrate", arguments->calibration,
                      "Text that ranges of activations are taken from (default: the evaluated one)");
  command->add_option("--parts", arguments->parts,
                      "Write the loss of each document, or of its part in a window, as JSON lines");
  command->add_option("--likeliest", arguments->likeliest,
                      "Write the likeliest token for each target, one id a line");
  CLI::Option* prompts =
      command
          ->add_option("--prompts", arguments->prompts,
                       "Also continue each line of this file by its likeliest tokens (as generate --prompts)")
          ->check(CLI::ExistingFile);
  prompts->needs(command
                     ->add_option("--continuations", arguments->continuations,
                                  "With --prompts: the lines' continuations go to this name, a dot and the "
                                  "width of the beam")
                     ->needs(prompts));
  command
      ->add_option("--beams", arguments->beams, "With --prompts: widths of the beam, such as 1,4; 1: greedy")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->needs(prompts);
  command->add_option("--tokens", arguments->tokens, "With --prompts: tokens of a continuation, at most")
      ->capture_default_str()
      ->check(above_zero())
      ->needs(prompts);
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments] { run_eval(*arguments); });
}

}  // namespace moebius::cli
