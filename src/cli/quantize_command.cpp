#include "cli/quantize_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "base/parallel.h"
#include "base/units.h"
#include "ckpt/text.h"
#include "cli/number_checks.h"
#include "train/quantise.h"

namespace moebius::cli {
namespace {

struct QuantizeArguments {
  train::QuantiseOptions options;
  int threads = 0;
  bool quiet = false;
};

void print_table(const train::QuantiseResult& result) {
  std::printf("%-34s %-20s %10s %10s %9s %9s %9s %7s\n", "weight", "shape", "range", "smallest", "clipped",
              "error", "outliers", "peak");
  for (const train::QuantisedWeight& weight : result.weights)
    std::printf("%-34s %-20s %10.4g %10.4g %8.4f%% %8.3f%% %8.5f%% %7.1f\n", weight.name.c_str(),
                ckpt::shape_text(weight.dims).c_str(), weight.range, weight.smallest_range,
                100 * weight.clipped_share, 100 * weight.relative_error, 100 * weight.outlier_share,
                weight.peak_ratio);
}

void print_inputs(const train::QuantiseResult& result) {
  std::printf("\nWhat the weights are multiplied with, over %lld tokens (loss %.4f):\n",
              static_cast<long long>(result.calibration_tokens), result.calibration_loss);
  std::printf("%-34s %10s %10s %9s %7s\n", "weight", "rows", "range", "error", "peak");
  for (const train::QuantisedWeight& weight : result.weights)
    if (weight.input_rows > 0)
      std::printf("%-34s %10lld %10.4g %8.3f%% %7.1f\n", weight.name.c_str(),
                  static_cast<long long>(weight.input_rows), weight.input_range, 100 * weight.input_error,
                  weight.input_peak_ratio);
}

double ratio(int64_t a, int64_t b) {
  return b > 0 ? static_cast<double>(a) / static_cast<double>(b) : 0;
}

void run_quantize(const QuantizeArguments& arguments) {
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  train::QuantiseOptions options = arguments.options;
  const bool live = isatty(STDERR_FILENO) != 0;
  if (live)
    options.progress = [](const std::string& name, int64_t index, int64_t count) {
      std::fprintf(stderr, "\r\033[K%lld/%lld %s ", static_cast<long long>(index),
                   static_cast<long long>(count), name.c_str());
    };
  const train::QuantiseResult result = train::quantise_run(options);
  if (live) std::fprintf(stderr, "\r\033[K");
  if (!arguments.quiet) print_table(result);
  if (!arguments.quiet && result.calibration_tokens > 0) print_inputs(result);
  for (const std::string& name : result.left_float)
    std::printf("%s stays in floats: attention takes it apart for every token\n", name.c_str());
  std::printf("%s, step %lld: %zu weights of %s are now %s (%.3f of that); the model %s, was %s\n",
              result.scheme.c_str(), static_cast<long long>(result.step), result.weights.size(),
              format_bytes(result.weight_bytes_before).c_str(),
              format_bytes(result.weight_bytes_after).c_str(),
              ratio(result.weight_bytes_after, result.weight_bytes_before),
              format_bytes(result.bytes_after).c_str(), format_bytes(result.bytes_before).c_str());
  std::printf("written to %s, the report as quantisation.json; try: moebius eval %s\n", options.to.c_str(),
              options.to.c_str());
}

}  // namespace

void add_quantize_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("quantize", "Make a run whose weights are integers, for eval and generate");
  auto arguments = std::make_shared<QuantizeArguments>();
  command->add_option("run", arguments->options.from, "Run folder or checkpoint")->required();
  command->add_option("out", arguments->options.to, "Run folder to make")->required();
  command
      ->add_option("--scheme", arguments->options.scheme,
                   "int8-w8a8: weights and activations in 8 bits; int8-w8a16: activations in 16; "
                   "int4-w4a16: weights in 4 bits with a scale per group")
      ->capture_default_str();
  command->add_option("--group", arguments->options.group, "int4: values along an input that share a scale")
      ->capture_default_str();
  command
      ->add_option("--calibrate", arguments->options.calibration,
                   "Text file or corpus (.idx) that the float model reads first, for a report of activations")
      ->check(CLI::ExistingFile);
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(above_zero());
  command->add_flag("--quiet", arguments->quiet, "Leave out the table of the weights");
  command->callback([arguments] { run_quantize(*arguments); });
}

}  // namespace moebius::cli
