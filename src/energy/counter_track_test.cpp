#include "energy/counter_track.h"

#include <gtest/gtest.h>

namespace moebius::energy {
namespace {

constexpr CounterTrack::Limits kGpu{.max_watts = 1000};
constexpr CounterTrack::Limits kPackage{.range_joules = 65'000, .max_watts = 1000};

TEST(CounterTrack, adds_up_what_the_counter_gains) {
  CounterTrack track(kGpu, 0, 5000);
  track.advance(1, 5400);
  track.advance(2, 5400);
  track.advance(3, 6150);
  EXPECT_EQ(track.joules(), 1150);
  EXPECT_EQ(track.doubt(), "");
}

TEST(CounterTrack, is_absent_until_the_counter_moves) {
  CounterTrack track(kGpu, 0, 5000);
  EXPECT_FALSE(track.joules());
  track.advance(0.01, 5000);
  EXPECT_FALSE(track.joules());
  track.advance(0.1, 5001);
  EXPECT_EQ(track.joules(), 1);
}

TEST(CounterTrack, unwraps) {
  CounterTrack track(kPackage, 0, 64'500);
  track.advance(5, 64'900);
  track.advance(10, 300);
  track.advance(70, 20'300);
  track.advance(130, 60'300);
  track.advance(190, 15'300);
  EXPECT_EQ(track.joules(), 400 + 400 + 20'000 + 40'000 + 20'000);
}

TEST(CounterTrack, tells_a_reset_from_a_wrap_by_the_power_it_would_take) {
  CounterTrack track(kPackage, 0, 30'000);
  track.advance(5, 10);  // a wrap would be 35 kJ in 5 s
  EXPECT_FALSE(track.joules());
  EXPECT_EQ(track.doubt(), "went backwards, from 30000 J to 10 J");
}

TEST(CounterTrack, doubts_a_counter_that_goes_backwards_for_good) {
  CounterTrack track(kGpu, 0, 5000);
  track.advance(1, 5500);
  track.advance(2, 100);
  EXPECT_FALSE(track.joules());
  track.advance(3, 600);
  EXPECT_FALSE(track.joules());
  EXPECT_EQ(track.doubt(), "went backwards, from 5500 J to 100 J");
}

TEST(CounterTrack, doubts_a_counter_that_stays_zero) {
  CounterTrack track(kGpu, 0, 0);
  track.advance(9, 0);
  EXPECT_EQ(track.doubt(), "");
  track.advance(10, 0);
  EXPECT_EQ(track.doubt(), "has stood at 0 J for 10 s");
  EXPECT_FALSE(track.joules());
}

TEST(CounterTrack, doubts_a_counter_that_stops) {
  CounterTrack track(kGpu, 0, 0);
  track.advance(8, 100);
  track.advance(17, 100);
  EXPECT_EQ(track.joules(), 100);
  track.advance(18, 100);
  EXPECT_EQ(track.doubt(), "has stood at 100 J for 10 s");
  EXPECT_FALSE(track.joules());
}

TEST(CounterTrack, doubts_a_jump_that_nothing_can_draw) {
  CounterTrack track(kGpu, 0, 0);
  track.advance(0.01, 900);  // the step of a slow counter
  EXPECT_EQ(track.joules(), 900);
  track.advance(2, 18'446'744'073'709'551.615);
  EXPECT_FALSE(track.joules());
  EXPECT_NE(track.doubt().find("jumped by 1.84467e+16 J in 1.99 s"), std::string::npos) << track.doubt();
}

TEST(CounterTrack, doubts_a_gap_in_which_a_wrap_may_hide) {
  CounterTrack track(kPackage, 0, 100);
  EXPECT_EQ(track.longest_gap_seconds(), 65);
  track.advance(65, 200);
  EXPECT_EQ(track.joules(), 100);
  track.advance(131, 300);
  EXPECT_FALSE(track.joules());
  EXPECT_EQ(track.doubt(), "was not read for 66 s, in which it may wrap more than once");
}

}  // namespace
}  // namespace moebius::energy
