#include "queue/calendar.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/philox.h"

namespace moebius::queue {
namespace {

TEST(Calendar, finds_the_first_hole_that_is_long_and_wide_enough) {
  Calendar calendar(4);
  calendar.reserve(0, 10, 3);
  calendar.reserve(20, 30, 2);
  EXPECT_EQ(calendar.next_fit(0, 5, 1), 0);
  EXPECT_EQ(calendar.next_fit(0, 5, 2), 10);
  EXPECT_EQ(calendar.next_fit(0, 10, 3), 10);
  EXPECT_EQ(calendar.next_fit(0, 11, 3), 30);
  EXPECT_EQ(calendar.next_fit(0, 11, 2), 10);
  EXPECT_EQ(calendar.free_workers(5, 25, 1, 9), 1);
  EXPECT_EQ(calendar.free_workers(10, 20, 2, 9), 2);
  EXPECT_EQ(calendar.free_workers(10, 20, 1, 2), 2);
}

TEST(Calendar, shows_stretches_of_equal_room) {
  Calendar calendar(4);
  calendar.reserve(10, 20, 3);
  calendar.reserve(15, 20, 1);
  const auto stretches = calendar.free_stretches(5, 25, 2, 2);
  ASSERT_EQ(stretches.size(), 3u);
  EXPECT_EQ(stretches[0].end_s, 10);
  EXPECT_EQ(stretches[0].workers, 2);
  EXPECT_EQ(stretches[1].end_s, 20);
  EXPECT_EQ(stretches[1].workers, 0);
  EXPECT_EQ(stretches[2].end_s, 25);
  EXPECT_EQ(stretches[2].workers, 2);
  // Half of it kept free: two of four before 10, none while three or four are used.
  const auto careful = calendar.free_stretches(5, 25, 1, 9, 0.5);
  ASSERT_EQ(careful.size(), 3u);
  EXPECT_EQ(careful[0].workers, 2);
  EXPECT_EQ(careful[1].workers, 0);
  EXPECT_EQ(careful[1].end_s, 20);
}

TEST(Calendar, without_a_capacity_all_is_free) {
  Calendar calendar(std::nullopt);
  calendar.reserve(0, 10, 1000);
  EXPECT_EQ(calendar.next_fit(3, 10, 99), 3);
  EXPECT_EQ(calendar.free_stretches(0, 10, 5, 3).front().workers, 3);
}

// Random reservations and releases against an array of seconds.
TEST(Calendar, agrees_with_counting_second_by_second) {
  constexpr int64_t kCapacity = 7, kEnd = 200;
  const Philox random(3, "calendar test");
  Calendar calendar(kCapacity);
  std::vector<int64_t> used(kEnd + 1, 0);
  struct Reservation {
    int64_t begin, end, width;
  };
  std::vector<Reservation> held;
  uint64_t draw = 0;
  const auto below = [&](int64_t bound) { return static_cast<int64_t>(random.below(draw++, bound)); };
  for (int round = 0; round < 400; ++round) {
    if (!held.empty() && below(3) == 0) {
      const auto which = below(static_cast<int64_t>(held.size()));
      const Reservation each = held[which];
      held.erase(held.begin() + which);
      calendar.release(static_cast<double>(each.begin), static_cast<double>(each.end), each.width);
      for (int64_t t = each.begin; t < each.end; ++t) used[t] -= each.width;
    }
    const int64_t from = below(kEnd - 60), duration = 1 + below(40), width = 1 + below(kCapacity);
    int64_t expected = from;
    const auto fits = [&](int64_t begin) {
      for (int64_t t = begin; t < std::min(begin + duration, kEnd); ++t) {
        if (used[t] + width > kCapacity) return false;
      }
      return true;
    };
    while (!fits(expected)) ++expected;
    ASSERT_EQ(calendar.next_fit(static_cast<double>(from), static_cast<double>(duration), width), expected)
        << round;
    for (const Piece& each : calendar.free_stretches(static_cast<double>(from), kEnd, 1, kCapacity)) {
      for (auto t = static_cast<int64_t>(each.begin_s); t < static_cast<int64_t>(each.end_s); ++t) {
        ASSERT_EQ(each.workers, kCapacity - used[t]) << "second " << t << " in round " << round;
      }
    }
    if (expected + duration > kEnd) continue;
    calendar.reserve(static_cast<double>(expected), static_cast<double>(expected + duration), width);
    for (int64_t t = expected; t < expected + duration; ++t) used[t] += width;
    held.push_back({expected, expected + duration, width});
  }
}

}  // namespace
}  // namespace moebius::queue
