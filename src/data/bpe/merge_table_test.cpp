#include "data/bpe/merge_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

namespace moebius::data {
namespace {

// Pair by pair, as the method is defined.
std::vector<int32_t> merged_slowly(const std::vector<Merge>& merges, std::vector<int32_t> ids) {
  for (;;) {
    const Merge* best = nullptr;
    size_t place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i)
      for (const Merge& merge : merges)
        if (merge.left == ids[i] && merge.right == ids[i + 1] && (!best || merge.rank < best->rank)) {
          best = &merge;
          place = i;
        }
    if (!best) return ids;
    ids[place] = best->result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

// Merges over tokens made of "abc", each pair at most once; `shuffled`: in any order, so that a token may be
// needed by an earlier rank than the one that makes it.
std::vector<Merge> random_merges(std::mt19937& random, bool shuffled) {
  std::vector<std::string> tokens = {"a", "b", "c"};
  std::map<std::string, int32_t> ids = {{"a", 0}, {"b", 1}, {"c", 2}};
  std::vector<Merge> merges;
  for (int i = 0; i < 40; ++i) {
    const auto left = static_cast<int32_t>(random() % tokens.size());
    const auto right = static_cast<int32_t>(random() % tokens.size());
    const std::string text = tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
    const bool known = std::any_of(merges.begin(), merges.end(), [&](const Merge& merge) {
      return merge.left == left && merge.right == right;
    });
    if (known || text.size() > 12) continue;
    const auto [entry, added] = ids.emplace(text, static_cast<int32_t>(tokens.size()));
    if (added) tokens.push_back(text);
    merges.push_back({left, right, entry->second, 0});
  }
  if (shuffled) std::shuffle(merges.begin(), merges.end(), random);
  for (size_t i = 0; i < merges.size(); ++i) merges[i].rank = static_cast<uint32_t>(i);
  return merges;
}

void compare(bool shuffled) {
  std::mt19937 random(shuffled ? 5 : 4);
  MergeTable::Scratch scratch;
  for (int round = 0; round < 60; ++round) {
    const std::vector<Merge> merges = random_merges(random, shuffled);
    const MergeTable table(merges);
    for (const size_t length : {1u, 2u, 7u, 40u, 41u, 130u}) {
      std::vector<int32_t> ids(length);
      const uint32_t letters = 1 + random() % 3;
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % letters);
      const std::vector<int32_t> expected = merged_slowly(merges, ids);
      table.merge(ids, scratch);
      ASSERT_EQ(ids, expected) << "round " << round << ", length " << length;
    }
  }
}

TEST(MergeTable, merges_as_the_method_is_defined) {
  compare(/*shuffled=*/false);
}

TEST(MergeTable, merges_in_any_order_of_ranks) {
  compare(/*shuffled=*/true);
}

TEST(MergeTable, without_merges_nothing_changes) {
  MergeTable::Scratch scratch;
  std::vector<int32_t> ids(100, 7);
  MergeTable().merge(ids, scratch);
  EXPECT_EQ(ids, std::vector<int32_t>(100, 7));
}

TEST(MergeTable, of_two_merges_of_a_pair_the_later_one_counts) {
  const MergeTable table({{0, 1, 2, 0}, {0, 1, 3, 1}});
  EXPECT_EQ(table.find(0, 1).result, 3);
  EXPECT_EQ(table.find(1, 0).rank, MergeTable::kNoRank);
}

}  // namespace
}  // namespace moebius::data
