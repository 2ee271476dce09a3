#include "cli/plan_command.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/memory.h"
#include "base/units.h"
#include "cli/cluster_plan.h"
#include "cli/config_files.h"
#include "cli/schedule_plan.h"
#include "data/tokenizer.h"
#include "ops/device.h"
#include "train/model_files.h"
#include "train/plan.h"
#include "train/recompute_choice.h"

namespace moebius::cli {
namespace {

struct PlanArguments {
  std::string config, device = "auto";
  std::vector<std::string> overrides;
  bool as_json = false, draws_schedule = false;
  ClusterOptions cluster;
};

// Memory that can be had now; none where there is no such device, so that a config can be planned for another
// machine.
std::optional<int64_t> available_bytes(bool on_cuda) {
  if (on_cuda) {
    kernels::DeviceInfo info{};
    const kernels::Plugin* plugin = ops::cuda_plugin();
    if (plugin == nullptr || !plugin->device_info(0, &info)) return std::nullopt;
    return info.free_memory_bytes;
  }
  const Result<MachineMemory> memory = machine_memory();
  return memory.ok() ? std::optional<int64_t>(memory->available_bytes) : std::nullopt;
}

std::string verdict(const train::Plan& plan, std::optional<int64_t> available, bool has_budget) {
  const std::string place = has_budget ? "memory.budget_gib" : plan.on_cuda ? "the GPU" : "this machine";
  const std::string has = has_budget ? " is " : " has ", ending = has_budget ? "\n" : " available\n";
  if (!available)
    return plan.on_cuda ? "there is no CUDA device here to hold it against\n"
                        : "how much memory this machine has available could not be read\n";
  if (plan.needed_bytes() <= *available) return "fits: " + place + has + format_bytes(*available) + ending;
  std::string text = "does not fit: " + place + has + format_bytes(*available) + ending;
  for (const train::Saving& saving : train::possible_savings(plan, *available))
    text += "  with " + saving.field + " = " + saving.value + " it needs " +
            format_bytes(saving.needed_bytes) + '\n';
  return text;
}

void run_plan(const PlanArguments& arguments) {
  config::RunConfig config = load_config(arguments.config, arguments.overrides);
  if (arguments.draws_schedule) {
    if (config.model.vocab == 0)
      config.model.vocab = train::vocabulary(config, data::open_tokenizer(config.data.tokenizer).get());
    std::cout << schedule_plan(config, arguments.as_json) << std::flush;
    return;
  }
  if (!arguments.cluster.cluster.empty()) {
    if (config.model.vocab == 0)
      config.model.vocab = train::vocabulary(config, data::open_tokenizer(config.data.tokenizer).get());
    ClusterOptions options = arguments.cluster;
    options.as_json = arguments.as_json;
    std::cout << cluster_plan(config, options) << std::flush;
    return;
  }
  ops::load_cuda_plugin();
  const bool on_cuda =
      arguments.device == "cuda" || (arguments.device == "auto" && ops::choose_device("auto").is_cuda());
  if (config.model.vocab == 0)
    config.model.vocab = train::vocabulary(config, data::open_tokenizer(config.data.tokenizer).get());
  std::optional<int64_t> available = available_bytes(on_cuda);
  const train::Plan plan = train::make_plan(train::with_recompute(config, on_cuda, available), on_cuda);
  const bool has_budget = config.memory.budget_gib > 0;
  if (has_budget) available = train::memory_budget_bytes(config, available);
  if (arguments.as_json) {
    nlohmann::ordered_json json = train::to_json(plan);
    if (available) {
      json["available_bytes"] = *available;
      json["fits"] = plan.needed_bytes() <= *available;
    }
    std::cout << json.dump(2) << '\n';
  } else {
    std::cout << train::to_text(plan) << verdict(plan, available, has_budget);
  }
  std::cout.flush();
}

}  // namespace

void add_plan_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "plan", "Show parameters, arithmetic and memory of a config, before anything is allocated");
  auto arguments = std::make_shared<PlanArguments>();
  command->add_option("config", arguments->config, "Config file (TOML)")->required();
  command->add_option("--set", arguments->overrides, "Override a field: train.micro_batch=2")
      ->allow_extra_args(false);
  command->add_option("--device", arguments->device, "cpu, cuda (also without a GPU here) or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  CLI::Option* cluster = command->add_option(
      "--cluster", arguments->cluster.cluster,
      "Predict a step on so many GPUs instead (h100x128, h200x8), laid out as [parallel] says");
  command->add_option("--layouts", arguments->cluster.layouts, "With --cluster: the best so many layouts")
      ->needs(cluster)
      ->check(CLI::Range(1, 1000));
  command
      ->add_option("--virtual-stages", arguments->cluster.virtual_stages,
                   "With --cluster: pieces of the model per pipeline stage")
      ->needs(cluster)
      ->check(CLI::Range(1, 1000));
  command
      ->add_flag("--hide", arguments->cluster.hides,
                 "With --cluster: exchanges of weights and gradients run behind arithmetic")
      ->needs(cluster);
  command
      ->add_flag("--schedule", arguments->draws_schedule,
                 "Draw the order of passes and exchanges of a step instead, laid out as [parallel] says")
      ->excludes(cluster);
  command->add_flag("--json", arguments->as_json, "Print one JSON object instead of text");
  command->callback([arguments] { run_plan(*arguments); });
}

}  // namespace moebius::cli
