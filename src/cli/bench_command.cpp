#include "cli/bench_command.h"

#include <ATen/Version.h>
#include <fnmatch.h>
#include <torch/headeronly/version.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>

#include "base/concat.h"
#include "base/distance.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "cli/layer_bench_command.h"
#include "cli/machine_probe.h"
#include "cli/number_checks.h"
#include "ops/cases/check.h"
#include "ops/cases/timing.h"
#include "ops/device.h"

namespace moebius::cli {
namespace {

using ops::cases::CheckResult;
using ops::cases::OpCase;
using ops::cases::Size;
using ops::cases::Timing;

struct BenchArguments {
  std::vector<std::string> cases;
  std::string device = "auto", dtype;
  std::string json;  // a file, "-" for stdout, empty for text
  int threads = 0, repeats = 20;
  bool list = false, check = false, tune = false;
  std::string table;
  std::vector<std::string> shapes, overrides;  // these and what follows: for layers and steps only
  int tokens = 0, sequence = 0, vocab = 0, kernels = -1;
};

struct Result {
  const OpCase* op_case;
  at::ScalarType dtype;
  Timing timing;
  std::optional<CheckResult> check;
};

std::string dtype_name(at::ScalarType dtype) {
  return dtype == at::kFloat ? "fp32" : "bf16";
}

std::string op_of(const OpCase& op_case) {
  return op_case.name.substr(0, op_case.name.find('/'));
}

std::string device_name(at::Device device) {
  if (device.is_cpu()) return probe_cpu().model;
  kernels::DeviceInfo info{};
  return ops::cuda_plugin()->device_info(device.index(), &info) ? info.name : "unknown GPU";
}

// "174 GFLOP/s" or "21.3 GB/s".
std::string rate_text(const Result& result) {
  const double giga = ops::cases::rate(result.op_case->work, result.dtype, result.timing.total_ms) * 1e-9;
  char text[64];
  std::snprintf(text, sizeof text, giga < 99.95 ? "%.1f %s" : "%.0f %s", giga,
                result.op_case->work.is_memory() ? "GB/s" : "GFLOP/s");
  return text;
}

void print_list() {
  std::string layers;
  for (const std::string& name : layer_bench_names()) layers += concat(layers.empty() ? "" : ", ", name);
  std::cout << "layers and steps at the sizes of models (--shape): " << layers << "\n";
  size_t width = 0;
  for (const OpCase& op_case : ops::cases::all_cases()) width = std::max(width, op_case.name.size());
  for (const OpCase& op_case : ops::cases::all_cases()) {
    std::string dtypes;
    for (const at::ScalarType dtype : op_case.dtypes)
      dtypes += concat(dtypes.empty() ? "" : ",", dtype_name(dtype));
    std::string line = op_case.name;
    line.resize(width + 2, ' ');
    line += dtypes;
    if (op_case.size == Size::large) line += "  large";
    if (!op_case.cuda) line += "  CPU only";
    std::cout << line << '\n';
  }
}

void print_heading(size_t width, at::Device device, int repeats) {
  std::cout << device_name(device);
  if (device.is_cpu()) std::cout << ", " << num_threads() << " threads";
  std::cout << "; medians of " << repeats << "\n";
  char line[256];
  std::snprintf(line, sizeof line, "%-*s  %-5s %12s %14s %16s", static_cast<int>(width), "case", "dtype",
                "forward ms", "with backward", "rate");
  std::cout << line << std::endl;
}

void print_line(size_t width, const Result& result) {
  char line[256], backward[32] = "-";
  if (result.timing.has_backward) std::snprintf(backward, sizeof backward, "%.4g", result.timing.total_ms);
  std::snprintf(line, sizeof line, "%-*s  %-5s %12.4g %14s %16s", static_cast<int>(width),
                result.op_case->name.c_str(), dtype_name(result.dtype).c_str(), result.timing.forward_ms,
                backward, rate_text(result).c_str());
  std::cout << line;
  if (result.check) {
    std::snprintf(line, sizeof line, "  error %.2g of %.2g", result.check->error, result.check->tolerance);
    std::cout << line << (result.check->passed() ? "" : "  FAILED");
    for (const std::string& problem : result.check->problems) std::cout << "\n    " << problem;
  }
  std::cout << std::endl;
}

nlohmann::ordered_json to_json(const Result& result) {
  nlohmann::ordered_json json{{"case", result.op_case->name},
                              {"dtype", dtype_name(result.dtype)},
                              {"forward_ms", result.timing.forward_ms}};
  if (result.timing.has_backward) json["forward_backward_ms"] = result.timing.total_ms;
  json["calls"] = result.timing.calls;
  json[result.op_case->work.is_memory() ? "bytes_per_second" : "flops_per_second"] =
      ops::cases::rate(result.op_case->work, result.dtype, result.timing.total_ms);
  if (result.check) {
    json["error"] = result.check->error;
    json["error_of"] = result.check->where;
    json["tolerance"] = result.check->tolerance;
    json["passed"] = result.check->passed();
    if (!result.check->passed()) json["problems"] = result.check->problems;
  }
  return json;
}

void write_json(const std::vector<Result>& results, at::Device device, const BenchArguments& arguments) {
  nlohmann::ordered_json json{
      {"moebius", MOEBIUS_VERSION},
      {"libtorch", concat(TORCH_VERSION_MAJOR, ".", TORCH_VERSION_MINOR, ".", TORCH_VERSION_PATCH)},
      {"device", device.is_cpu() ? "cpu" : "cuda"},
      {"device_name", device_name(device)}};
  if (device.is_cpu()) json["threads"] = num_threads();
  json["repeats"] = arguments.repeats;
  json["results"] = nlohmann::ordered_json::array();
  for (const Result& result : results) json["results"].push_back(to_json(result));
  if (arguments.json == "-") {
    std::cout << json.dump(2) << std::endl;
  } else {
    write_file_atomic(arguments.json, json.dump(2) + "\n");
  }
}

std::vector<std::pair<const OpCase*, at::ScalarType>> runs_of(const BenchArguments& arguments,
                                                              at::Device device) {
  std::vector<std::pair<const OpCase*, at::ScalarType>> runs;
  for (const OpCase* op_case : select_cases(arguments.cases, device.is_cuda())) {
    if (device.is_cuda() && !op_case->cuda) continue;
    for (const at::ScalarType dtype : op_case->dtypes)
      if (arguments.dtype.empty() || arguments.dtype == dtype_name(dtype)) runs.emplace_back(op_case, dtype);
  }
  if (runs.empty())
    throw_user_error("none of the chosen cases runs ",
                     arguments.dtype.empty() ? "" : concat("in ", arguments.dtype, " "), "on ",
                     device.is_cpu() ? "the CPU" : "a GPU", "; see moebius bench --list");
  return runs;
}

bool is_layer_bench(const std::string& word) {
  const std::vector<std::string>& names = layer_bench_names();
  return std::find(names.begin(), names.end(), word) != names.end();
}

// Whether layers or steps are asked for. They are op cases too by name: `attention` alone means the cases,
// with --shape the layer.
bool asks_for_layers(const BenchArguments& arguments) {
  size_t layers = 0, only_layers = 0;
  for (const std::string& word : arguments.cases) {
    if (!is_layer_bench(word)) continue;
    ++layers;
    only_layers += word == "moe_layer" || word == "linear_ce" || word == "step" ? 1 : 0;
  }
  const bool has_sizes = !arguments.shapes.empty() || !arguments.overrides.empty() || arguments.tokens > 0 ||
                         arguments.sequence > 0 || arguments.vocab > 0 || arguments.kernels >= 0 ||
                         arguments.tune || !arguments.table.empty();
  if (only_layers == 0 && !has_sizes) return false;
  if (layers < arguments.cases.size()) {
    const auto other = std::find_if_not(arguments.cases.begin(), arguments.cases.end(), is_layer_bench);
    throw_user_error("'", *other,
                     "' is no layer that takes --shape; those are moe_layer, attention, linear_ce, "
                     "adamw and step, and op cases are timed by a call of their own");
  }
  return true;
}

void run_layers(const BenchArguments& arguments) {
  LayerBenchArguments layers;
  layers.benches = arguments.cases;
  layers.shapes = arguments.shapes;
  layers.overrides = arguments.overrides;
  layers.device = arguments.device;
  if (!arguments.dtype.empty()) layers.dtype = arguments.dtype;
  layers.json = arguments.json;
  layers.threads = arguments.threads;
  layers.repeats = arguments.repeats;
  layers.tokens = arguments.tokens;
  layers.sequence = arguments.sequence;
  layers.vocab = arguments.vocab;
  layers.check = arguments.check;
  layers.tune = arguments.tune;
  layers.table = arguments.table;
  layers.kernels = arguments.kernels;
  run_layer_bench(layers);
}

void run_bench(const BenchArguments& arguments) {
  if (arguments.list) return print_list();
  if (arguments.cases.empty())
    throw_user_error("bench needs the name of a case or a pattern; see moebius bench --list");
  if (asks_for_layers(arguments)) return run_layers(arguments);
  ops::load_cuda_plugin();
  const at::Device device = ops::choose_device(arguments.device);
  const auto runs = runs_of(arguments, device);
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  size_t width = 0;
  for (const auto& [op_case, dtype] : runs) width = std::max(width, op_case->name.size());
  const bool prints_text = arguments.json != "-";
  if (prints_text) print_heading(width, device, arguments.repeats);
  std::vector<Result> results;
  size_t failed = 0;
  for (const auto& [op_case, dtype] : runs) {
    Result result{op_case, dtype, ops::cases::time_case(*op_case, dtype, device, arguments.repeats), {}};
    if (arguments.check) result.check = ops::cases::check_case(*op_case, dtype, device);
    if (result.check && !result.check->passed()) ++failed;
    if (prints_text) print_line(width, result);
    results.push_back(std::move(result));
  }
  if (!arguments.json.empty()) write_json(results, device, arguments);
  if (failed > 0)
    throw std::runtime_error(concat(failed, " of ", results.size(), " cases differ from their reference"));
}

}  // namespace

std::vector<const OpCase*> select_cases(const std::vector<std::string>& words, bool with_large) {
  std::set<const OpCase*> chosen;
  for (const std::string& word : words) {
    bool found = false;
    for (const OpCase& op_case : ops::cases::all_cases()) {
      const bool in_full = op_case.name == word;
      const bool fits =
          in_full || op_of(op_case) == word || fnmatch(word.c_str(), op_case.name.c_str(), 0) == 0;
      found |= fits;
      if (in_full || (fits && (with_large || op_case.size != Size::large))) chosen.insert(&op_case);
    }
    if (found) continue;
    std::vector<std::string> names;
    for (const OpCase& op_case : ops::cases::all_cases()) {
      names.push_back(op_case.name);
      if (const std::string op = op_of(op_case); names.end() == std::find(names.begin(), names.end(), op))
        names.push_back(op);
    }
    const std::optional<std::string> nearest = nearest_name(word, names);
    throw_user_error("no op case is called '", word, "'",
                     nearest ? concat("; did you mean '", *nearest, "'?") : "", " (moebius bench --list)");
  }
  std::vector<const OpCase*> in_order;
  for (const OpCase& op_case : ops::cases::all_cases())
    if (chosen.count(&op_case) > 0) in_order.push_back(&op_case);
  return in_order;
}

void add_bench_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "bench", "Time single operators, layers and steps, and check them against references");
  auto arguments = std::make_shared<BenchArguments>();
  command->add_option(
      "case", arguments->cases,
      "Case, operator (all its cases) or pattern: expert_ffn/*f640. Large cases run on the "
      "CPU only when named in full. With --shape a layer: moe_layer, attention, linear_ce, adamw, "
      "or a training step: step");
  command
      ->add_option("--shape", arguments->shapes, "Shapes of layers: mixtral, qwen3-30b, ... (default: all)")
      ->delimiter(',');
  command->add_option("--tokens", arguments->tokens, "Tokens of a layer, instead of the shape's")
      ->check(above_zero());
  command->add_option("--sequence", arguments->sequence, "Tokens of a document for attention")
      ->check(above_zero());
  command->add_option("--vocab", arguments->vocab, "Vocabulary of linear_ce and step")->check(above_zero());
  command
      ->add_option(
          "--kernels", arguments->kernels,
          "Of a layer or step: also the time by phase and the longest N kernels, as the driver measures them")
      ->expected(0, 1)
      ->default_str("20")
      ->check(zero_or_more());
  command
      ->add_option("--set", arguments->overrides,
                   "Field of the config of a step, of adamw or of moe_layer: optimizer.state_dtype=fp32, "
                   "precision.experts=int8")
      ->allow_extra_args(false);
  command->add_flag("--tune", arguments->tune,
                    "First measure how the experts' products of the shapes are computed fastest on this GPU; "
                    "this and later runs then compute them so");
  command->add_option(
      "--table", arguments->table,
      "File of measured products to use, or to write with --tune (default: moebius/products.json in "
      "the user's cache)");
  command->add_flag("--list", arguments->list, "List the cases instead");
  command->add_option("--device", arguments->device, "cpu, cuda or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(above_zero());
  command->add_option("--dtype", arguments->dtype, "Only this dtype: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command
      ->add_option("--repeats", arguments->repeats, "Measurements of each case, of which the median counts")
      ->capture_default_str()
      ->check(above_zero());
  command->add_flag("--check", arguments->check,
                    "Also compare outputs and gradients with the double-precision reference");
  command
      ->add_option("--json", arguments->json,
                   "Write one JSON object into this file, or without a name print it instead of text")
      ->expected(0, 1)
      ->default_str("-");
  command->callback([arguments] { run_bench(*arguments); });
}

}  // namespace moebius::cli
