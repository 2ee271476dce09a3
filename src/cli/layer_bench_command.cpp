#include "cli/layer_bench_command.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/units.h"
#include "cli/layer_bench.h"
#include "cli/layer_shapes.h"
#include "cli/layer_timing.h"
#include "cli/machine_probe.h"
#include "cli/product_tuning.h"
#include "cli/step_bench.h"
#include "config/load.h"
#include "config/validate.h"
#include "ops/cases/tolerance.h"
#include "ops/device.h"
#include "ops/int8_linear.h"

namespace moebius::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kRepeatedSteps = 3;
constexpr int kProfiledCalls = 3;

std::string bench_device_name(at::Device device) {
  if (device.is_cpu()) return probe_cpu().model;
  kernels::DeviceInfo info{};
  return ops::cuda_plugin()->device_info(device.index(), &info) ? info.name : "unknown GPU";
}

// "412 TFLOP/s", "3.21 TB/s", "84.1 GFLOP/s".
std::string per_second(double value, const char* unit) {
  static constexpr const char* kPrefix[] = {"", "k", "M", "G", "T", "P"};
  int prefix = 0;
  while (value >= 999.5 && prefix < 5) {
    value /= 1000;
    ++prefix;
  }
  char text[64];
  std::snprintf(text, sizeof text,
                value < 9.995   ? "%.2f %s%s/s"
                : value < 99.95 ? "%.1f %s%s/s"
                                : "%.0f %s%s/s",
                value, kPrefix[prefix], unit);
  return text;
}

struct Figure {
  std::string bench, shape;
  Json json;
  std::string text;
  bool failed = false;
};

LayerShape shape_for(const std::string& name, const LayerBenchArguments& arguments) {
  LayerShape shape = find_layer_shape(name);
  if (arguments.tokens > 0) shape.tokens = arguments.tokens;
  if (arguments.sequence > 0) shape.sequence = arguments.sequence;
  if (arguments.vocab > 0) shape.vocab = arguments.vocab;
  return shape;
}

config::RunConfig config_for(const LayerShape& shape, const LayerBenchArguments& arguments) {
  config::RunConfig config = step_config(shape);
  if (arguments.dtype == "fp32") config.train.precision = "fp32";
  config.train.steps = arguments.repeats + 3;
  config::apply_overrides(config, arguments.overrides);
  config::validate(config);
  if (config.train.steps <= 3)
    throw_user_error("train.steps is ", config.train.steps,
                     ", but bench step times the steps after the third");
  return config;
}

// Refuses what a bench of the shape could not take.
void check_arguments(const std::string& bench, const LayerShape& shape,
                     const LayerBenchArguments& arguments) {
  if (bench == "step") {
    config_for(shape, arguments);
  } else if (bench == "moe_layer" || bench == "adamw") {
    config::RunConfig config;
    config::apply_overrides(config, arguments.overrides);
  }
}

LayerBench layer_bench(const std::string& bench, const LayerShape& shape,
                       const LayerBenchArguments& arguments, at::Device device) {
  const at::ScalarType dtype = arguments.dtype == "fp32" ? at::kFloat : at::kBFloat16;
  if (bench == "moe_layer") {
    config::RunConfig config;
    config::apply_overrides(config, arguments.overrides);
    const bool int8 = config.precision.experts == "int8";
    if (int8 && (!ops::has_int8_products(device) || (device.is_cuda() && dtype != at::kBFloat16)))
      throw_user_error("precision.experts is 'int8', but ", device.str(), " has no integer products in ",
                       arguments.dtype, "; use a GPU of compute capability 9.0 with --dtype bf16, or a CPU");
    return moe_layer_bench(shape, dtype, device, int8);
  }
  if (bench == "attention") return attention_bench(shape, dtype, device);
  if (bench == "linear_ce") return linear_ce_bench(shape, dtype, device);
  config::RunConfig config;
  config.optimizer.master_weights = false;
  config.optimizer.state_dtype = "bf16";
  config::apply_overrides(config, arguments.overrides);
  return adamw_bench(shape, config.optimizer, dtype, device);
}

void add_profile(Figure& figure, const std::vector<KernelTime>& kernels, int calls, int count) {
  figure.text += "\n" + profile_text(kernels, calls, static_cast<size_t>(count));
  figure.text.pop_back();
  figure.json["kernels"] = Json::array();
  for (const KernelTime& kernel : kernels)
    figure.json["kernels"].push_back({{"name", kernel.name},
                                      {"phase", kernel.phase},
                                      {"calls", static_cast<double>(kernel.calls) / calls},
                                      {"ms", kernel.ms / calls}});
}

Json sizes_of(const LayerShape& shape) {
  return {{"H", shape.dim}, {"I", shape.expert_dim}, {"E", shape.experts}, {"K", shape.top_k}};
}

void add_check(Figure& figure, const LayerBench& layer, const LayerBenchArguments& arguments) {
  const double allowed =
      ops::cases::tolerance(layer.op_class, arguments.dtype == "fp32" ? at::kFloat : at::kBFloat16);
  std::string where;
  const double error = largest_error(layer.results(), layer.reference(), &where);
  figure.failed = !(error <= allowed);
  figure.json["error"] = error;
  figure.json["error_of"] = where;
  figure.json["tolerance"] = allowed;
  figure.json["passed"] = !figure.failed;
  char text[128];
  std::snprintf(text, sizeof text, "  error %.2g of %.2g", error, allowed);
  figure.text += text;
  if (figure.failed) figure.text += "  FAILED in " + where;
}

Figure measure_layer(const std::string& bench, const LayerShape& shape, const LayerBenchArguments& arguments,
                     const Ceilings& ceilings, at::Device device) {
  const LayerBench layer = layer_bench(bench, shape, arguments, device);
  const LayerTimes times = time_layer(layer.passes, arguments.repeats, device);
  const LayerWork& work = layer.work;
  const bool is_memory = work.total_flops == 0;
  const double bound_ms =
      1e3 * std::max(work.total_flops / ceilings.flops, work.total_bytes / ceilings.bytes);
  const auto rate = [&](double flops, double bytes, double ms) {
    return (is_memory ? bytes : flops) / (1e-3 * ms);
  };
  const double forward = rate(work.forward_flops, work.forward_bytes, times.forward_ms),
               total = rate(work.total_flops, work.total_bytes, times.total_ms);
  Figure figure{bench, shape.name, {}, {}};
  figure.json = {{"case", bench},
                 {"shape", shape.name},
                 {"dtype", arguments.dtype},
                 {"tokens", shape.tokens},
                 {"sizes", sizes_of(shape)},
                 {"forward_ms", times.forward_ms},
                 {"forward_backward_ms", times.total_ms}};
  if (is_memory) {
    figure.json["gb_per_second"] = total * 1e-9;
  } else {
    figure.json["forward_tflops"] = forward * 1e-12;
    figure.json["forward_backward_tflops"] = total * 1e-12;
  }
  figure.json["bound_ms"] = bound_ms;
  figure.json["share_of_bound"] = bound_ms / times.total_ms;
  figure.json["held_bytes"] = times.held_bytes;
  figure.json["extra_peak_bytes"] = times.peak_bytes;
  const char* const unit = is_memory ? "B" : "FLOP";
  char text[320];
  std::snprintf(text, sizeof text, "%-10s %-13s %7lld %10.4g ms %13s %10.4g ms %13s %5.1f %%  %10s %10s",
                bench.c_str(), shape.name.c_str(), static_cast<long long>(shape.tokens), times.forward_ms,
                per_second(forward, unit).c_str(), times.total_ms, per_second(total, unit).c_str(),
                100 * bound_ms / times.total_ms, format_bytes(times.held_bytes).c_str(),
                format_bytes(times.peak_bytes).c_str());
  figure.text = text;
  if (arguments.check) add_check(figure, layer, arguments);
  if (arguments.kernels >= 0) {
    const auto once = [&] {
      const std::vector<at::Tensor> outputs = layer.passes.forward();
      if (!layer.passes.output_grads.empty())
        torch::autograd::grad(outputs, layer.passes.leaves, layer.passes.output_grads);
    };
    const auto profiled = [&] {
      for (int i = 0; i < kProfiledCalls; ++i) once();
    };
    add_profile(figure, profile_kernels(profiled, device), kProfiledCalls, arguments.kernels);
  }
  return figure;
}

Figure measure_step(const LayerShape& shape, const LayerBenchArguments& arguments, const Ceilings& ceilings,
                    at::Device device) {
  const config::RunConfig config = config_for(shape, arguments);
  ops::use_product_table_of(config.train.product_table, device);
  const StepTimes times = time_steps(config, device);
  Figure figure{"step", shape.name, {}, {}};
  const int64_t tokens = config.train.batch * config.train.sequence;
  const double share = times.model_flops / ceilings.flops;
  figure.json = {{"case", "step"},
                 {"shape", shape.name},
                 {"dtype", config.train.precision},
                 {"tokens", tokens},
                 {"layers", config.model.layers},
                 {"recompute", config.train.recompute},
                 {"step_ms", times.step_ms},
                 {"model_tflops", times.model_flops * 1e-12},
                 {"tokens_per_second", times.tokens_per_second},
                 {"share_of_bound", share},
                 {"peak_memory_bytes", times.peak_bytes},
                 {"loss", times.loss},
                 {"steps", config.train.steps}};
  char text[320];
  std::snprintf(text, sizeof text, "%-10s %-13s %7lld %10s    %13s %10.4g ms %13s %5.1f %%  %10s %10s",
                "step", shape.name.c_str(), static_cast<long long>(tokens), "",
                (format_count(times.tokens_per_second) + " tok/s").c_str(), times.step_ms,
                per_second(times.model_flops, "FLOP").c_str(), 100 * share, "",
                format_bytes(times.peak_bytes).c_str());
  figure.text = text;
  if (arguments.check) {
    figure.failed = !steps_repeat(config, kRepeatedSteps, device);
    figure.json["repeats_exactly"] = !figure.failed;
    figure.text += figure.failed ? "  FAILED: two runs differ" : "  two runs are equal";
  }
  if (arguments.kernels >= 0)
    add_profile(figure, profile_steps(config, kProfiledCalls, device), kProfiledCalls, arguments.kernels);
  return figure;
}

// The shapes that were asked for, or all that the bench has.
std::vector<LayerShape> shapes_for(const std::string& bench, const LayerBenchArguments& arguments) {
  std::vector<LayerShape> shapes;
  for (const std::string& name : arguments.shapes) shapes.push_back(shape_for(name, arguments));
  if (!shapes.empty()) return shapes;
  for (const LayerShape& each : layer_shapes()) {
    if (each.name == "tiny") continue;
    if ((bench == "step" && each.step_layers == 0) || (bench == "attention" && each.heads == 0)) continue;
    shapes.push_back(shape_for(each.name, arguments));
  }
  return shapes;
}

Json head_of(const Ceilings& ceilings, const LayerBenchArguments& arguments, at::Device device) {
  Json json{{"moebius", MOEBIUS_VERSION},
            {"libtorch", concat(TORCH_VERSION_MAJOR, ".", TORCH_VERSION_MINOR, ".", TORCH_VERSION_PATCH)},
            {"device", device.is_cpu() ? "cpu" : "cuda"},
            {"device_name", bench_device_name(device)}};
  if (device.is_cpu()) json["threads"] = num_threads();
  json["repeats"] = arguments.repeats;
  json["product_tflops"] = ceilings.flops * 1e-12;
  json["copy_gb_per_second"] = ceilings.bytes * 1e-9;
  json["results"] = Json::array();
  return json;
}

// Measures the products of the shapes, writes them into the table's file and uses it.
void tune_products(const LayerBenchArguments& arguments, at::Device device, bool prints_text) {
  const std::filesystem::path path =
      arguments.table.empty() ? ops::default_product_table_path() : std::filesystem::path(arguments.table);
  if (path.empty())
    throw_user_error("there is no home folder for the table of products; name a file with --table");
  const std::string name = bench_device_name(device);
  const std::string before = std::filesystem::exists(path) ? read_file(path) : "";
  ops::ProductTable table;
  if (!before.empty()) table = ops::ProductTable::parse(before, name, path.string());
  for (const LayerShape& shape : shapes_for("moe_layer", arguments)) {
    const LayerProductTimes times = time_products(shape, device);
    if (prints_text) std::cout << "products of " << shape.name << '\n' << tuning_text(times) << std::flush;
    for (const ops::ProductTable::Entry& entry : fastest_ways(times)) table.add(entry);
    // Each shape at once: an interrupted run keeps what it has measured.
    write_file_atomic(path, table.text(name, before, path.string()));
  }
  ops::set_product_table(std::move(table));
  if (prints_text) std::cout << "table of products: " << path.string() << std::endl;
}

}  // namespace

const std::vector<std::string>& layer_bench_names() {
  static const std::vector<std::string> names{"moe_layer", "attention", "linear_ce", "adamw", "step"};
  return names;
}

void run_layer_bench(const LayerBenchArguments& arguments) {
  // What can be refused is, before anything is measured.
  for (const std::string& bench : arguments.benches)
    for (const LayerShape& shape : shapes_for(bench, arguments)) check_arguments(bench, shape, arguments);
  ops::load_cuda_plugin();
  const at::Device device = ops::choose_device(arguments.device);
  if (arguments.threads > 0) set_num_threads(arguments.threads);
  if (!arguments.tune && !arguments.table.empty())
    ops::use_product_table(arguments.table, bench_device_name(device));
  const Ceilings ceilings = measure_ceilings(arguments.dtype == "fp32" ? at::kFloat : at::kBFloat16, device);
  const bool prints_text = arguments.json != "-";
  if (prints_text) {
    std::cout << bench_device_name(device) << ": product " << per_second(ceilings.flops, "FLOP") << ", copy "
              << per_second(ceilings.bytes, "B") << "; medians of at least " << arguments.repeats << '\n';
    char line[320];
    std::snprintf(line, sizeof line, "%-10s %-13s %7s %13s %13s %13s %13s %7s  %10s %10s", "case", "shape",
                  "tokens", "forward", "rate", "with backward", "rate", "of bound", "held", "peak");
    std::cout << line << std::endl;
  }
  if (arguments.tune) tune_products(arguments, device, prints_text);
  Json json = head_of(ceilings, arguments, device);
  size_t failed = 0;
  for (const std::string& bench : arguments.benches) {
    for (const LayerShape& shape : shapes_for(bench, arguments)) {
      const Figure figure = bench == "step" ? measure_step(shape, arguments, ceilings, device)
                                            : measure_layer(bench, shape, arguments, ceilings, device);
      failed += figure.failed ? 1 : 0;
      if (prints_text) std::cout << figure.text << std::endl;
      json["results"].push_back(figure.json);
    }
  }
  if (!prints_text) std::cout << json.dump(2) << std::endl;
  if (prints_text && !arguments.json.empty()) write_file_atomic(arguments.json, json.dump(2) + "\n");
  if (failed > 0)
    throw std::runtime_error(concat(failed, " of ", json["results"].size(), " differ from their reference"));
}

}  // namespace moebius::cli
