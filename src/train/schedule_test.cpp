#include "train/schedule.h"

#include <gtest/gtest.h>

namespace moebius::train {
namespace {

config::ScheduleConfig schedule(const std::string& kind) {
  config::ScheduleConfig s;
  s.kind = kind;
  s.warmup_steps = 10;
  s.final_lr_ratio = 0.1;
  s.decay_fraction = 0.25;
  return s;
}

TEST(Schedule, warms_up_linearly_whatever_follows) {
  for (const char* kind : {"constant", "linear", "cosine", "wsd"}) {
    EXPECT_DOUBLE_EQ(schedule_factor(schedule(kind), 1, 100), 0.1) << kind;
    EXPECT_DOUBLE_EQ(schedule_factor(schedule(kind), 9, 100), 0.9) << kind;
    EXPECT_DOUBLE_EQ(schedule_factor(schedule(kind), 10, 100), 1.0) << kind;
  }
}

TEST(Schedule, ends_at_the_final_ratio) {
  for (const char* kind : {"linear", "cosine", "wsd"})
    EXPECT_NEAR(schedule_factor(schedule(kind), 100, 100), 0.1, 1e-12) << kind;
  EXPECT_DOUBLE_EQ(schedule_factor(schedule("constant"), 100, 100), 1.0);
}

TEST(Schedule, linear_and_cosine_pass_the_middle_half_way) {
  for (const char* kind : {"linear", "cosine"})
    EXPECT_NEAR(schedule_factor(schedule(kind), 55, 100), 0.55, 1e-12) << kind;
}

TEST(Schedule, wsd_holds_and_then_falls_linearly) {
  EXPECT_DOUBLE_EQ(schedule_factor(schedule("wsd"), 75, 100), 1.0);
  EXPECT_NEAR(schedule_factor(schedule("wsd"), 80, 100), 1 - 0.2 * 0.9, 1e-12);
}

TEST(Schedule, without_warm_up_starts_at_the_peak) {
  config::ScheduleConfig s = schedule("linear");
  s.warmup_steps = 0;
  EXPECT_NEAR(schedule_factor(s, 1, 100), 1 - 0.01 * 0.9, 1e-12);
}

}  // namespace
}  // namespace moebius::train
