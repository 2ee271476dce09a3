#include "train/recompute_choice.h"

#include <algorithm>
#include <limits>

#include "train/flops.h"
#include "train/plan.h"

namespace moebius::train {
namespace {

constexpr double kShareOfFreeMemory = 0.9;

int64_t num_blocks(const config::RunConfig& config) {
  return config.model.layers + config.model.mtp.depth;
}

// The ways numbered by how much they compute again: 0 none, N selective everywhere, 2 N full everywhere.
config::RunConfig way(const config::RunConfig& config, int64_t number) {
  const int64_t blocks = num_blocks(config);
  config::RunConfig changed = config;
  changed.train.recompute = number == 0 ? "none" : number <= blocks ? "selective" : "full";
  const int64_t layers = number <= blocks ? number : number - blocks;
  changed.train.recompute_layers = layers == blocks ? 0 : layers;
  return changed;
}

}  // namespace

std::optional<int64_t> memory_budget_bytes(const config::RunConfig& config,
                                           std::optional<int64_t> available_bytes) {
  if (config.memory.budget_gib > 0)
    return static_cast<int64_t>(config.memory.budget_gib * static_cast<double>(int64_t{1} << 30));
  if (!available_bytes) return std::nullopt;
  return static_cast<int64_t>(kShareOfFreeMemory * static_cast<double>(*available_bytes));
}

config::RunConfig with_recompute(const config::RunConfig& config, bool on_cuda,
                                 std::optional<int64_t> available_bytes) {
  if (config.train.recompute != "auto") return config;
  const std::optional<int64_t> budget = memory_budget_bytes(config, available_bytes);
  if (!budget) return way(config, 0);
  // Computing more again does not always need less: with one pass per step the gradients grow while the
  // activations shrink, and the peak may lie where none are left.
  int64_t least_needed = std::numeric_limits<int64_t>::max(), least = 0;
  for (int64_t number = 0; number <= 2 * num_blocks(config); ++number) {
    const int64_t needed = make_plan(way(config, number), on_cuda).needed_bytes();
    if (needed <= *budget) return way(config, number);
    if (needed >= least_needed) continue;
    least_needed = needed;
    least = number;
  }
  return way(config, least);
}

std::vector<RecomputeOption> recompute_options(const config::RunConfig& config, bool on_cuda) {
  std::vector<RecomputeOption> options;
  const auto add = [&](const std::string& recompute, int64_t layers) {
    config::RunConfig changed = config;
    changed.train.recompute = recompute;
    changed.train.recompute_layers = layers;
    const Plan plan = make_plan(changed, on_cuda);
    options.push_back({recompute, layers, plan.memory.largest.activations_bytes, plan.needed_bytes(),
                       recompute_flops_per_token(changed)});
  };
  for (const char* recompute : {"none", "selective", "full"}) add(recompute, 0);
  const config::TrainSection& train = config.train;
  const bool is_listed =
      train.recompute_layers == 0 || train.recompute == "none" || train.recompute == "auto";
  if (!is_listed) add(train.recompute, train.recompute_layers);
  return options;
}

}  // namespace moebius::train
