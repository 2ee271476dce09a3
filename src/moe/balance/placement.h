// Which rank holds which experts, by their expected load, when ranks have room for more than each expert
// once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moebius::moe {

struct Placement {
  std::vector<std::vector<int64_t>> experts_of_rank;  // each sorted; an expert may stand on several ranks

  int64_t num_ranks() const { return static_cast<int64_t>(experts_of_rank.size()); }
  // How often each of `num_experts` experts stands.
  std::vector<int64_t> replicas(int64_t num_experts) const;
  // Load of each rank when an expert's load is shared evenly by its replicas.
  std::vector<double> loads(std::span<const double> shares_E) const;
  // Largest rank load over the mean.
  double imbalance(std::span<const double> shares_E) const;
};

// Experts that `to` has on a rank and `from` has not: weights to be sent.
int64_t num_moves(const Placement& from, const Placement& to);

// Experts in blocks of neighbours, each once. `num_ranks` divides the number of experts.
Placement contiguous_placement(int64_t num_experts, int64_t num_ranks);

// How often each expert stands in `num_slots` slots: once each, then again and again the one with the largest
// load per replica (the rule of DeepSeek's EPLB), but no more often than there are ranks.
std::vector<int64_t> plan_replicas(std::span<const double> shares_E, int64_t num_slots, int64_t num_ranks);

struct PlacementOptions {
  int64_t slots_per_rank = 1;
  double good_enough = 1.05;  // imbalance that a placement which stands is left alone with
  int64_t max_moves = -1;     // no pair changes places beyond this many moves in all; -1: no limit
};

// A placement for the expected shares with as few moves from `current` as reach `good_enough`: replicas stay
// where they are as far as the new counts allow, the others go to the ranks with the least load, then
// pairs of replicas change places while that lowers the largest load. Deterministic.
Placement plan_placement(const Placement& current, std::span<const double> shares_E,
                         const PlacementOptions& options);

}  // namespace moebius::moe
