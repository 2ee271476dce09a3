// Which activations a run computes again: chosen from a memory budget, the least that fits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/train_config.h"

namespace moebius::train {

// What a step may take: memory.budget_gib, else nine tenths of `available_bytes` (what the plan may be off by
// is left); none when neither is known.
std::optional<int64_t> memory_budget_bytes(const config::RunConfig& config,
                                           std::optional<int64_t> available_bytes);

// `config` with train.recompute decided where it is "auto". The ways in order of what they compute again:
// none, then the up projections and passes over memory of the first one, two, … blocks (selective), then
// whole blocks one after the other (full); the first that fits the budget, the one that needs the least when
// none does. Without a budget: none. model.vocab is set.
config::RunConfig with_recompute(const config::RunConfig& config, bool on_cuda,
                                 std::optional<int64_t> available_bytes);

// One way to recompute and what it comes to.
struct RecomputeOption {
  std::string recompute;     // "none", "selective", "full"
  int64_t layers = 0;        // see train.recompute_layers
  int64_t held_bytes = 0;    // activations between forward and backward, at most
  int64_t needed_bytes = 0;  // Plan::needed_bytes()
  double extra_flops_per_token = 0;
};

// none, selective and full for all blocks, and the config's own way when it is another.
std::vector<RecomputeOption> recompute_options(const config::RunConfig& config, bool on_cuda);

}  // namespace moebius::train
