#include "moe/balance/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace moebius::moe {
namespace {

using Shares = std::vector<double>;

TEST(Placement, replicates_the_hottest) {
  EXPECT_EQ(plan_replicas(Shares{0.5, 0.2, 0.2, 0.1}, 6, 4), (std::vector<int64_t>{3, 1, 1, 1}));
  EXPECT_EQ(plan_replicas(Shares{0.5, 0.2, 0.2, 0.1}, 6, 2), (std::vector<int64_t>{2, 2, 1, 1}))
      << "no more often than there are ranks";
}

TEST(Placement, a_plan_for_known_loads_is_exact) {
  // 0.4 stands twice; (0.2 + 0.3) and (0.2 + 0.1 + 0.2).
  const Shares shares = {0.4, 0.3, 0.1, 0.2};
  const Placement current = contiguous_placement(4, 2);
  EXPECT_EQ(current.experts_of_rank, (std::vector<std::vector<int64_t>>{{0, 1}, {2, 3}}));
  EXPECT_NEAR(current.imbalance(shares), 1.4, 1e-12);
  const Placement planned = plan_placement(current, shares, {.slots_per_rank = 3});
  EXPECT_EQ(planned.replicas(4), (std::vector<int64_t>{2, 2, 1, 1}));
  EXPECT_LE(planned.imbalance(shares), 1.1 + 1e-12);
}

TEST(Placement, what_is_good_enough_stays_where_it_is) {
  const Shares even(8, 0.125);
  const Placement current = contiguous_placement(8, 4);
  const Placement planned = plan_placement(current, even, {.slots_per_rank = 2});
  EXPECT_EQ(planned.experts_of_rank, current.experts_of_rank);
}

TEST(Placement, random_loads_are_balanced_with_few_moves) {
  std::mt19937 random(11);
  for (int round = 0; round < 50; ++round) {
    const int64_t ranks = 8, experts = 64;
    Shares shares(static_cast<size_t>(experts));
    double sum = 0;
    for (double& share : shares) sum += share = 0.2 + static_cast<double>(random() % 1000) / 1000;
    shares[random() % 64] += 4;
    sum += 4;
    for (double& share : shares) share /= sum;
    const PlacementOptions options{.slots_per_rank = 9, .good_enough = 1.03};
    const Placement first = plan_placement(contiguous_placement(experts, ranks), shares, options);
    EXPECT_LE(first.imbalance(shares), 1.03);
    for (const auto& held : first.experts_of_rank) {
      EXPECT_EQ(held.size(), 9u);
      EXPECT_TRUE(std::adjacent_find(held.begin(), held.end()) == held.end()) << "an expert twice on a rank";
    }
    const std::vector<int64_t> counts = first.replicas(experts);
    EXPECT_EQ(*std::min_element(counts.begin(), counts.end()), 1);
    // A little change of load moves little.
    Shares later = shares;
    later[3] *= 1.3;
    const Placement second = plan_placement(first, later, options);
    EXPECT_LE(second.imbalance(later), 1.035);
    EXPECT_LE(num_moves(first, second), 10) << "of 72";
  }
}

TEST(Placement, without_spare_slots_experts_only_change_places) {
  const Shares shares = {0.4, 0.3, 0.05, 0.05, 0.1, 0.1};
  const Placement planned =
      plan_placement(contiguous_placement(6, 3), shares, {.slots_per_rank = 2, .good_enough = 1.0});
  EXPECT_NEAR(planned.imbalance(shares), 3 * 0.45, 1e-9);
  EXPECT_EQ(num_moves(contiguous_placement(6, 3), planned), 2);
  const Placement held = plan_placement(contiguous_placement(6, 3), shares,
                                        {.slots_per_rank = 2, .good_enough = 1.0, .max_moves = 1});
  EXPECT_EQ(num_moves(contiguous_placement(6, 3), held), 0);
}

}  // namespace
}  // namespace moebius::moe
