#include "cli/convert_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"
#include "ckpt/text.h"
#include "cli/number_checks.h"
#include "train/convert.h"

namespace moebius::cli {
namespace {

// Bytes and rate, on one line of a terminal; nothing elsewhere.
class ConvertProgress {
 public:
  train::BytesProgress callback() {
    if (isatty(STDERR_FILENO) == 0) return {};
    return [this](int64_t num_bytes) {
      const double now = steady_seconds();
      if (now - shown_ < 0.2) return;
      shown_ = now;
      std::fprintf(stderr, "\r%s  (%s/s) ", format_bytes(num_bytes).c_str(), rate(num_bytes).c_str());
    };
  }
  std::string rate(int64_t num_bytes) const {
    const double seconds = std::max(steady_seconds() - began_, 1e-9);
    return format_bytes(static_cast<int64_t>(static_cast<double>(num_bytes) / seconds));
  }
  void clear() const {
    if (shown_ > 0) std::fprintf(stderr, "\r\033[K");
  }

 private:
  double began_ = steady_seconds(), shown_ = 0;
};

void run_from_hf(const train::FromHfOptions& given) {
  train::FromHfOptions options = given;
  ConvertProgress progress;
  options.progress = progress.callback();
  const train::FromHfResult result = train::convert_from_hf(options);
  progress.clear();
  for (const std::string& note : result.notes) log_info(note);
  if (!result.non_finite.empty())
    log_warn("values that are not finite in ", result.non_finite.size(),
             " tensors: ", ckpt::names_text(result.non_finite));
  std::printf("%s, %s parameters in %s, read at %s/s\n", result.architecture.c_str(),
              format_count(static_cast<double>(result.num_parameters)).c_str(),
              result.config.train.precision.c_str(), progress.rate(result.num_bytes).c_str());
  if (result.config.data.synthetic)
    std::printf(
        "written to %s; no tokenizer.json or tokenizer.model came with it, so that it knows no text\n",
        options.to.c_str());
  else
    std::printf("written to %s; try: moebius generate %s --prompt TEXT\n", options.to.c_str(),
                options.to.c_str());
}

void run_to_hf(const train::ToHfOptions& given) {
  train::ToHfOptions options = given;
  ConvertProgress progress;
  options.progress = progress.callback();
  const train::ToHfResult result = train::convert_to_hf(options);
  progress.clear();
  std::printf("step %lld, %s of tensors, written at %s/s to %s\n", static_cast<long long>(result.step),
              format_bytes(result.num_bytes).c_str(), progress.rate(result.num_bytes).c_str(),
              options.to.c_str());
}

void run_upcycle(const train::UpcycleOptions& options) {
  const train::UpcycleResult result = train::convert_upcycle(options);
  std::printf("%s parameters became %s: %lld experts in every layer, %lld per token; written to %s\n",
              format_count(static_cast<double>(result.parameters_before)).c_str(),
              format_count(static_cast<double>(result.parameters_after)).c_str(),
              static_cast<long long>(options.experts), static_cast<long long>(options.top_k),
              options.to.c_str());
}

}  // namespace

void add_convert_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "convert", "Models from and to the Hugging Face layout, and dense ones to ones with experts");
  command->require_subcommand(1);

  CLI::App* from = command->add_subcommand("hf", "Make a run folder out of a Hugging Face model folder");
  auto from_options = std::make_shared<train::FromHfOptions>();
  from->add_option("model", from_options->from, "Folder with config.json and safetensors")->required();
  from->add_option("out", from_options->to, "Run folder to make")->required();
  from->add_option("--precision", from_options->precision, "Type of the weights (default: as they are)")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  from->callback([from_options] { run_from_hf(*from_options); });

  CLI::App* to = command->add_subcommand("to-hf", "Write a trained model as a Hugging Face model folder");
  auto to_options = std::make_shared<train::ToHfOptions>();
  to->add_option("run", to_options->from, "Run folder or checkpoint")->required();
  to->add_option("out", to_options->to, "Model folder to make")->required();
  to->add_option(
      "--family", to_options->family,
      "Model type to write, e.g. qwen3_moe (default: as it was imported, else the first that fits)");
  to->add_option("--shard-bytes", to_options->shard_bytes, "Largest file of weights")
      ->capture_default_str()
      ->check(above_zero());
  to->callback([to_options] { run_to_hf(*to_options); });

  CLI::App* upcycle = command->add_subcommand(
      "upcycle", "Make a model with experts out of a dense one by copying its feed-forward layers");
  auto upcycle_options = std::make_shared<train::UpcycleOptions>();
  upcycle->add_option("run", upcycle_options->from, "Run folder or checkpoint of a dense model")->required();
  upcycle->add_option("out", upcycle_options->to, "Run folder to make")->required();
  upcycle->add_option("--experts", upcycle_options->experts, "Copies of each feed-forward")
      ->capture_default_str()
      ->check(above_zero());
  upcycle->add_option("--top-k", upcycle_options->top_k, "Experts that each token is sent to")
      ->capture_default_str()
      ->check(above_zero());
  upcycle->add_option("--seed", upcycle_options->seed, "Seed of the routers")
      ->capture_default_str()
      ->check(zero_or_more());
  upcycle->callback([upcycle_options] { run_upcycle(*upcycle_options); });
}

}  // namespace moebius::cli
