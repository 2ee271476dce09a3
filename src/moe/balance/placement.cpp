#include "moe/balance/placement.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace moebius::moe {
namespace {

bool holds(const std::vector<int64_t>& experts, int64_t expert) {
  return std::find(experts.begin(), experts.end(), expert) != experts.end();
}

// A placement while it is being changed.
class Draft {
 public:
  Draft(const Placement& current, std::span<const double> shares, const PlacementOptions& options)
      : current_(current), shares_(shares), options_(options), ranks_(current.experts_of_rank) {
    const auto num_slots = options.slots_per_rank * current.num_ranks();
    replicas_ = plan_replicas(shares, num_slots, current.num_ranks());
  }

  Placement finish() {
    drop_surplus();
    add_missing();
    while (improve()) {
    }
    Placement result{ranks_};
    for (auto& experts : result.experts_of_rank) std::sort(experts.begin(), experts.end());
    return result;
  }

 private:
  double load_of(int64_t expert) const {
    return shares_[static_cast<size_t>(expert)] / static_cast<double>(replicas_[static_cast<size_t>(expert)]);
  }
  double load(size_t rank) const {
    double sum = 0;
    for (const int64_t expert : ranks_[rank]) sum += load_of(expert);
    return sum;
  }
  std::vector<double> all_loads() const {
    std::vector<double> loads(ranks_.size());
    for (size_t r = 0; r < loads.size(); ++r) loads[r] = load(r);
    return loads;
  }

  // Replicas beyond the new counts leave the ranks with the most load.
  void drop_surplus() {
    for (size_t e = 0; e < shares_.size(); ++e) {
      const auto expert = static_cast<int64_t>(e);
      std::vector<size_t> on;
      for (size_t r = 0; r < ranks_.size(); ++r)
        if (holds(ranks_[r], expert)) on.push_back(r);
      while (static_cast<int64_t>(on.size()) > replicas_[e]) {
        const auto most =
            std::max_element(on.begin(), on.end(), [&](size_t a, size_t b) { return load(a) < load(b); });
        std::erase(ranks_[*most], expert);
        on.erase(most);
      }
    }
  }

  // The heaviest first, each on the rank with the least load that has room and not this expert.
  void add_missing() {
    std::vector<int64_t> missing;
    for (size_t e = 0; e < shares_.size(); ++e) {
      int64_t there = 0;
      for (const auto& experts : ranks_) there += holds(experts, static_cast<int64_t>(e));
      missing.insert(missing.end(), static_cast<size_t>(replicas_[e] - there), static_cast<int64_t>(e));
    }
    std::stable_sort(missing.begin(), missing.end(),
                     [&](int64_t a, int64_t b) { return load_of(a) > load_of(b); });
    for (const int64_t expert : missing) add(expert);
  }

  void add(int64_t expert) {
    size_t best = ranks_.size();
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const bool fits =
          static_cast<int64_t>(ranks_[r].size()) < options_.slots_per_rank && !holds(ranks_[r], expert);
      if (fits && (best == ranks_.size() || load(r) < load(best))) best = r;
    }
    if (best < ranks_.size()) {
      ranks_[best].push_back(expert);
      return;
    }
    // Only ranks that hold it already have room: one of those hands another expert on.
    for (size_t full = 0; full < ranks_.size(); ++full) {
      if (holds(ranks_[full], expert)) continue;
      for (int64_t& other : ranks_[full]) {
        for (size_t room = 0; room < ranks_.size(); ++room) {
          if (static_cast<int64_t>(ranks_[room].size()) >= options_.slots_per_rank ||
              holds(ranks_[room], other))
            continue;
          ranks_[room].push_back(other);
          other = expert;
          return;
        }
      }
    }
    MOEBIUS_CHECK(false, "no rank has room for expert ", expert);
  }

  // Exchanges the pair of replicas, one of them on the rank with the most load, that lowers the larger of the
  // two ranks' loads most. False when the result is good enough, nothing helps or no move is left.
  bool improve() {
    const std::vector<double> loads = all_loads();
    const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(loads.size());
    const size_t most = static_cast<size_t>(std::max_element(loads.begin(), loads.end()) - loads.begin());
    if (loads[most] <= options_.good_enough * mean) return false;
    double best = loads[most] * (1 - 1e-9);
    size_t best_rank = ranks_.size(), best_here = 0, best_there = 0;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (r == most) continue;
      for (size_t i = 0; i < ranks_[most].size(); ++i) {
        for (size_t j = 0; j < ranks_[r].size(); ++j) {
          const int64_t here = ranks_[most][i], there = ranks_[r][j];
          const double difference = load_of(here) - load_of(there);
          const double larger = std::max(loads[most] - difference, loads[r] + difference);
          if (larger >= best || holds(ranks_[r], here) || holds(ranks_[most], there)) continue;
          best = larger;
          best_rank = r;
          best_here = i;
          best_there = j;
        }
      }
    }
    if (best_rank == ranks_.size()) return false;
    std::swap(ranks_[most][best_here], ranks_[best_rank][best_there]);
    if (options_.max_moves >= 0 && num_moves(current_, {ranks_}) > options_.max_moves) {
      std::swap(ranks_[most][best_here], ranks_[best_rank][best_there]);
      return false;
    }
    return true;
  }

  const Placement& current_;
  std::span<const double> shares_;
  const PlacementOptions& options_;
  std::vector<std::vector<int64_t>> ranks_;
  std::vector<int64_t> replicas_;
};

}  // namespace

std::vector<int64_t> Placement::replicas(int64_t num_experts) const {
  std::vector<int64_t> counts(static_cast<size_t>(num_experts));
  for (const auto& experts : experts_of_rank)
    for (const int64_t expert : experts) ++counts[static_cast<size_t>(expert)];
  return counts;
}

std::vector<double> Placement::loads(std::span<const double> shares) const {
  const std::vector<int64_t> counts = replicas(static_cast<int64_t>(shares.size()));
  std::vector<double> result;
  for (const auto& experts : experts_of_rank) {
    double sum = 0;
    for (const int64_t expert : experts)
      sum += shares[static_cast<size_t>(expert)] / static_cast<double>(counts[static_cast<size_t>(expert)]);
    result.push_back(sum);
  }
  return result;
}

double Placement::imbalance(std::span<const double> shares) const {
  const std::vector<double> rank_loads = loads(shares);
  const double sum = std::accumulate(rank_loads.begin(), rank_loads.end(), 0.0);
  return *std::max_element(rank_loads.begin(), rank_loads.end()) * static_cast<double>(rank_loads.size()) /
         sum;
}

int64_t num_moves(const Placement& from, const Placement& to) {
  MOEBIUS_CHECK_EQ(from.num_ranks(), to.num_ranks());
  int64_t moves = 0;
  for (size_t r = 0; r < to.experts_of_rank.size(); ++r)
    for (const int64_t expert : to.experts_of_rank[r]) moves += !holds(from.experts_of_rank[r], expert);
  return moves;
}

Placement contiguous_placement(int64_t num_experts, int64_t num_ranks) {
  MOEBIUS_CHECK_EQ(num_experts % num_ranks, 0);
  Placement placement;
  for (int64_t r = 0; r < num_ranks; ++r) {
    std::vector<int64_t> experts(static_cast<size_t>(num_experts / num_ranks));
    std::iota(experts.begin(), experts.end(), r * (num_experts / num_ranks));
    placement.experts_of_rank.push_back(std::move(experts));
  }
  return placement;
}

std::vector<int64_t> plan_replicas(std::span<const double> shares, int64_t num_slots, int64_t num_ranks) {
  const auto num_experts = static_cast<int64_t>(shares.size());
  MOEBIUS_CHECK(num_slots >= num_experts && num_slots <= num_experts * num_ranks, num_slots, " slots for ",
                num_experts, " experts on ", num_ranks, " ranks");
  std::vector<int64_t> counts(shares.size(), 1);
  for (int64_t slot = num_experts; slot < num_slots; ++slot) {
    size_t hottest = shares.size();
    double most = -1;
    for (size_t e = 0; e < shares.size(); ++e) {
      const double load = shares[e] / static_cast<double>(counts[e]);
      if (counts[e] < num_ranks && load > most) {
        most = load;
        hottest = e;
      }
    }
    ++counts[hottest];
  }
  return counts;
}

Placement plan_placement(const Placement& current, std::span<const double> shares,
                         const PlacementOptions& options) {
  int64_t standing = 0;
  for (const auto& experts : current.experts_of_rank) standing += static_cast<int64_t>(experts.size());
  const bool is_full = standing == options.slots_per_rank * current.num_ranks();
  if (is_full && current.imbalance(shares) <= options.good_enough) return current;
  return Draft(current, shares, options).finish();
}

}  // namespace moebius::moe
