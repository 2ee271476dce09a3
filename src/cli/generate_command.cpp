#include "cli/generate_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "base/units.h"
#include "cli/number_checks.h"
#include "data/chat_template.h"
#include "nn/batch_generation.h"
#include "ops/device.h"
#include "train/model_files.h"
#include "train/sample.h"

namespace moebius::cli {
namespace {

struct GenerateArguments {
  std::string path, prompt = "\n", prompt_file, device = "auto";
  std::string chat, system;
  std::string prompts, out, cache = "model";
  train::SampleOptions options;
  nn::BatchGenerateOptions batch;
  bool no_cache = false, stats = false;
  int threads = 0;
};

// The conversation as the model's own template writes it.
std::string chat_prompt(const GenerateArguments& arguments, const train::LoadedModel& model) {
  const std::filesystem::path folder = std::filesystem::path(model.tokenizer_spec).parent_path();
  const auto chat = model.tokenizer_spec == "bytes" ? std::nullopt : data::load_chat_template(folder);
  if (!chat) {
    throw_user_error("--chat: ", arguments.path,
                     " has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json, "
                     "beside its tokenizer); give the text with --prompt");
  }
  std::vector<data::ChatMessage> messages;
  if (!arguments.system.empty()) messages.push_back({"system", arguments.system});
  messages.push_back({"user", arguments.chat});
  return chat->render_chat(messages, std::time(nullptr));
}

// Continues every line of a file, one line out for each.
void run_lines(const GenerateArguments& arguments, const train::LoadedModel& model) {
  nn::BatchGenerateOptions options = arguments.batch;
  options.max_tokens = arguments.options.generate.max_tokens;
  options.end_ids = train::carried_end_ids(model.run_dir(), model.config.model.vocab);
  const double begin = steady_seconds();
  const std::vector<std::string> texts =
      train::continue_lines(*model.decoder, *model.tokenizer, read_file(arguments.prompts), options);
  std::string all;
  for (const std::string& text : texts) all += text + "\n";
  if (arguments.out.empty()) {
    std::cout << all << std::flush;
  } else {
    write_file_atomic(arguments.out, all);
  }
  const double seconds = steady_seconds() - begin;
  if (arguments.stats)
    std::fprintf(stderr, "%zu lines in %s, %s\n", texts.size(), format_duration(seconds).c_str(),
                 format_rate(static_cast<double>(texts.size()) / seconds, "lines").c_str());
}

// Speed, and what it takes of memory.
void print_stats(const nn::GenerationTimes& times, const nn::WeightBytes& weights) {
  const auto count = static_cast<double>(times.tokens - 1);
  std::fprintf(stderr, "prompt of %lld tokens in %s, then %lld tokens in %s",
               static_cast<long long>(times.prompt_tokens), format_duration(times.prompt_seconds).c_str(),
               static_cast<long long>(std::max<int64_t>(times.tokens - 1, 0)),
               format_duration(times.seconds).c_str());
  if (times.tokens > 1) {
    const double rate = count / times.seconds;
    std::fprintf(stderr, ": %s, %.2f GB/s of weights read", format_rate(rate, "tokens").c_str(),
                 rate * static_cast<double>(weights.read_per_token) / 1e9);
  }
  std::fprintf(stderr, "\nweights take %s, those of products %.3f bytes a value",
               format_bytes(weights.held).c_str(),
               static_cast<double>(weights.products) /
                   static_cast<double>(std::max<int64_t>(weights.product_values, 1)));
  if (const auto memory = process_memory())
    std::fprintf(stderr, "; %s resident", format_bytes(memory.value().resident_bytes).c_str());
  std::fprintf(stderr, "\n");
}

void run_generate(const GenerateArguments& arguments) {
  ops::load_cuda_plugin();
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  const train::LoadedModel model =
      train::load_model_to_run(arguments.path, ops::choose_device(arguments.device));
  if (!model.tokenizer)
    throw_user_error(arguments.path,
                     " was trained on synthetic tokens; it has no tokenizer to write text with");
  if (!arguments.prompts.empty()) return run_lines(arguments, model);
  train::SampleOptions options = arguments.options;
  options.prompt = arguments.prompt_file.empty() ? arguments.prompt : read_file(arguments.prompt_file);
  if (!arguments.chat.empty()) options.prompt = chat_prompt(arguments, model);
  options.generate.use_cache = !arguments.no_cache;
  options.generate.cache = nn::kv_format_named(arguments.cache);
  options.end_ids = train::carried_end_ids(model.run_dir(), model.config.model.vocab);

  const InterruptGuard interrupts;  // Ctrl-C ends the text, not the line it stands in
  if (arguments.chat.empty()) std::cout << options.prompt << std::flush;  // of a chat the answer alone
  nn::GenerationTimes times;
  options.generate.times = &times;
  train::stream_text(*model.decoder, *model.tokenizer, options, [&](std::string_view piece) {
    std::cout << piece << std::flush;
    return !interrupt_requested() && std::cout.good();
  });
  std::cout << std::endl;
  if (arguments.stats) print_stats(times, nn::weight_bytes(*model.decoder));
}

}  // namespace

void add_generate_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt with a trained model");
  auto arguments = std::make_shared<GenerateArguments>();
  nn::GenerateOptions& generate = arguments->options.generate;
  generate.max_tokens = 500;
  generate.sampling.temperature = 0.8;
  command->add_option("run", arguments->path, "Run folder or checkpoint")->required();
  CLI::Option* prompt =
      command->add_option("--prompt", arguments->prompt, "Text to continue (default: a new line)");
  command->add_option("--prompt-file", arguments->prompt_file, "Take the prompt from a file")
      ->excludes(prompt);
  CLI::Option* chat = command
                          ->add_option("--chat", arguments->chat,
                                       "What a user says; the model's chat template makes the prompt of it")
                          ->excludes(prompt)
                          ->excludes("--prompt-file");
  CLI::Option* prompts =
      command
          ->add_option(
              "--prompts", arguments->prompts,
              "Continue each line of this file by its likeliest tokens, many lines at a time; one line "
              "out for each")
          ->check(CLI::ExistingFile)
          ->excludes(prompt)
          ->excludes("--prompt-file")
          ->excludes(chat);
  command->add_option("--beams", arguments->batch.beams, "With --prompts: width of the beam; 1: greedy")
      ->capture_default_str()
      ->check(CLI::Range(1, 64))
      ->needs(prompts);
  command->add_option("--out", arguments->out, "With --prompts: write the lines to this file")
      ->needs(prompts);
  command->add_option("--system", arguments->system, "With --chat: the system message")->needs(chat);
  command->add_option("--tokens", generate.max_tokens, "Tokens to write, at most")
      ->capture_default_str()
      ->check(above_zero());
  command
      ->add_option("--temperature", generate.sampling.temperature,
                   "Divides the logits; 0: the likeliest token")
      ->capture_default_str()
      ->check(zero_or_more());
  command->add_option("--top-k", generate.sampling.top_k, "Draw from the k likeliest tokens; 0: all")
      ->check(zero_or_more());
  command
      ->add_option("--top-p", generate.sampling.top_p, "Draw from the likeliest tokens of this probability")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", generate.sampling.seed, "Seed of the draws")->capture_default_str();
  command
      ->add_option("--kv-cache", arguments->cache,
                   "What keys and values are held in: model (its dtype) or int8")
      ->capture_default_str()
      ->check(CLI::IsMember({"model", "int8"}));
  command->add_option("--device", arguments->device, "cpu, cuda or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(above_zero());
  command->add_flag("--no-cache", arguments->no_cache,
                    "Pass the whole text again for every token (for comparison)");
  command->add_flag("--stats", arguments->stats, "Say on stderr how fast it went");
  command->callback([arguments] { run_generate(*arguments); });
}

}  // namespace moebius::cli
