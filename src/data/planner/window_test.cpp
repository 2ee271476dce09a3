#include "data/planner/window.h"

#include <gtest/gtest.h>

#include <set>

#include "base/philox.h"

namespace moebius::data {
namespace {

TEST(LengthSet, finds_neighbours_as_a_sorted_set_does) {
  for (const int64_t max : {1, 63, 64, 65, 5000, 300000}) {
    LengthSet set(max);
    std::set<int64_t> expected;
    const Philox random(1, "test.set", max);
    for (int64_t i = 0; i < 4000; ++i) {
      const auto length = static_cast<int64_t>(1 + random.below(2 * i, max));
      if (expected.erase(length) > 0) {
        set.erase(length);
      } else {
        expected.insert(length);
        set.insert(length);
      }
      const auto asked = static_cast<int64_t>(random.below(2 * i + 1, max + 3));
      const auto above = expected.lower_bound(asked);
      ASSERT_EQ(set.smallest_at_least(asked), above == expected.end() ? 0 : *above);
      const auto beyond = expected.upper_bound(asked);
      ASSERT_EQ(set.largest_at_most(asked), beyond == expected.begin() ? 0 : *std::prev(beyond));
    }
  }
}

class WindowTest : public testing::Test {
 protected:
  ListStream stream{{5, 3, 5, 9, 3, 5}, 10, true, "lengths"};
  Window window{stream, 4, 10};
  MicroBatchPlan taken;
};

TEST_F(WindowTest, is_full_until_the_stream_ends) {
  window.fill(0);
  EXPECT_EQ(window.size(), 4);
  for (int i = 0; i < 2; ++i) {
    window.take(window.oldest(), taken);
    EXPECT_EQ(window.size(), 4);
  }
  window.take(window.oldest(), taken);
  EXPECT_EQ(window.size(), 3);
  EXPECT_EQ(window.num_arrived(), 6);
  EXPECT_EQ(window.sum_lengths(), 30);
  EXPECT_EQ(window.sum_squares(), 174);
}

TEST_F(WindowTest, finds_by_age_and_by_length_with_the_oldest_of_equals_first) {
  window.fill(7);
  EXPECT_EQ(window.at(window.oldest()).entered, 7);
  EXPECT_EQ(window.largest_at_most(8), 5);
  EXPECT_TRUE(window.has_two_of(5));
  const int32_t first = window.oldest_of(5);
  EXPECT_EQ(window.at(first).arrival, 0);
  EXPECT_EQ(window.at(window.after_of_length(first)).arrival, 2);
  window.take(first, taken);
  EXPECT_EQ(window.at(window.oldest()).arrival, 1);
  EXPECT_EQ(window.at(window.oldest_of(5)).arrival, 2);
  EXPECT_FALSE(window.has_two_of(5));
  window.take(window.oldest_of(9), taken);
  EXPECT_EQ(window.largest_at_most(10), 5);
  EXPECT_EQ(taken.tokens, 14);
  EXPECT_EQ(taken.arrivals, (std::vector<int64_t>{0, 3}));
}

}  // namespace
}  // namespace moebius::data
