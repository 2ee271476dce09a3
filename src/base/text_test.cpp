// Units, clock and nearest names: small pure functions on text.
#include <gtest/gtest.h>

#include <limits>

#include "base/clock.h"
#include "base/distance.h"
#include "base/units.h"

namespace moebius {
namespace {

TEST(Units, bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1000), "1000 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(int64_t{29} << 30), "29.0 GiB");
  EXPECT_EQ(format_bytes(std::numeric_limits<int64_t>::max()), "8.00 EiB");
  EXPECT_EQ(format_bytes(-2048), "-2.00 KiB");
}

TEST(Units, counts) {
  EXPECT_EQ(format_count(950), "950");
  EXPECT_EQ(format_count(0.5), "0.50");
  EXPECT_EQ(format_count(9120), "9.12k");
  EXPECT_EQ(format_count(999'999), "1.00M");
  EXPECT_EQ(format_count(46.7e9), "46.7B");
  EXPECT_EQ(format_count(123.4e6), "123M");
  EXPECT_EQ(format_count(std::numeric_limits<double>::infinity()), "inf");
  EXPECT_EQ(format_rate(9120, "tokens"), "9.12k tokens/s");
}

TEST(Units, durations) {
  EXPECT_EQ(format_duration(0.000350), "350 us");
  EXPECT_EQ(format_duration(0.0123), "12.3 ms");
  EXPECT_EQ(format_duration(4.2), "4.20 s");
  EXPECT_EQ(format_duration(59.96), "1m 00s");
  EXPECT_EQ(format_duration(187), "3m 07s");
  EXPECT_EQ(format_duration(7500), "2h 05m");
  EXPECT_EQ(format_duration(86400 * 3 + 4 * 3600), "3d 04h");
  EXPECT_EQ(format_duration(-2), "-2.00 s");
  EXPECT_EQ(format_duration(std::nan("")), "unknown");
}

TEST(Clock, fixed_clock_moves_only_when_told) {
  FixedClock clock(1'000'000'000);
  EXPECT_EQ(clock.wall_iso(), "2001-09-09T01:46:40Z");
  clock.advance(61.5);
  EXPECT_EQ(clock.seconds(), 61.5);
  EXPECT_EQ(clock.wall_iso(), "2001-09-09T01:47:41Z");
  const double earlier = system_clock().seconds();
  EXPECT_LE(earlier, system_clock().seconds());
}

TEST(Distance, counts_edits) {
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("steps", "stpes"), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("same", "same"), 0u);
}

TEST(Distance, nearest_name_or_none) {
  const std::vector<std::string> names = {"train.steps", "train.seed", "model.dim"};
  EXPECT_EQ(nearest_name("train.stpes", names), "train.steps");
  EXPECT_EQ(nearest_name("something.else.entirely", names), std::nullopt);
  EXPECT_EQ(nearest_name("x", {}), std::nullopt);
}

}  // namespace
}  // namespace moebius
