#include "cli/verify_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/parallel.h"
#include "cli/number_checks.h"
#include "ops/device.h"
#include "train/verify.h"

namespace moebius::cli {
namespace {

struct VerifyArguments {
  std::string model, golden, device = "cpu", precision = "fp32";
  int threads = 0;
  bool json = false;
};

// The comparison failed: the program ends with code 1, after its table.
class VerificationFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

void print_table(const train::Verification& result) {
  size_t width = 0;
  for (const train::Comparison& row : result.comparisons) width = std::max(width, row.name.size());
  for (const train::Comparison& row : result.comparisons) {
    const char* const verdict = row.tolerance < 0 ? "-" : row.passed() ? "ok" : "FAILED";
    std::printf("%-*s  %9.3g", static_cast<int>(width), row.name.c_str(), row.error);
    if (row.tolerance >= 0)
      std::printf("  of %7.3g", row.tolerance);
    else
      std::printf("  %10s", "");
    std::printf("  %-11s  %s\n", row.measure.c_str(), verdict);
  }
}

nlohmann::ordered_json to_json(const train::Verification& result) {
  nlohmann::ordered_json json;
  json["architecture"] = result.architecture;
  json["passed"] = result.passed();
  for (const train::Comparison& row : result.comparisons) {
    nlohmann::ordered_json line;
    line["name"] = row.name;
    line["error"] = row.error;
    if (row.tolerance >= 0) line["tolerance"] = row.tolerance;
    line["measure"] = row.measure;
    line["passed"] = row.passed();
    json["comparisons"].push_back(line);
  }
  return json;
}

void run_verify(const VerifyArguments& arguments) {
  ops::load_cuda_plugin();
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  train::VerifyOptions options;
  options.model = arguments.model;
  options.golden = arguments.golden;
  options.device = ops::choose_device(arguments.device);
  options.precision = arguments.precision;
  const train::Verification result = train::verify(options);
  for (const std::string& note : result.notes) log_warn(note);
  if (arguments.json)
    std::cout << to_json(result).dump(2) << "\n";
  else
    print_table(result);
  const auto failed = std::count_if(result.comparisons.begin(), result.comparisons.end(),
                                    [](const train::Comparison& row) { return !row.passed(); });
  const auto judged = std::count_if(result.comparisons.begin(), result.comparisons.end(),
                                    [](const train::Comparison& row) { return row.tolerance >= 0; });
  if (!arguments.json)
    std::printf("%s: %td of %td comparisons passed\n", result.architecture.c_str(), judged - failed, judged);
  std::fflush(stdout);
  if (failed > 0)
    throw VerificationFailed(concat(failed, " of ", judged, " comparisons failed; ", arguments.model,
                                    " is not computed as ", arguments.golden, " says"));
}

}  // namespace

void add_verify_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "verify", "Compare a Hugging Face model, run here, with what Transformers computed (a golden file)");
  auto arguments = std::make_shared<VerifyArguments>();
  command->add_option("model", arguments->model, "Folder with config.json and safetensors")->required();
  command->add_option("--golden", arguments->golden, "File made by tools/fixtures/make_fixtures.py")
      ->required();
  command->add_option("--device", arguments->device, "cpu, cuda or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  command->add_option("--precision", arguments->precision, "fp32 or bf16; bf16 judges losses and logits only")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(above_zero());
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments] { run_verify(*arguments); });
}

}  // namespace moebius::cli
