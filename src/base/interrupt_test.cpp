#include "base/interrupt.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

TEST(Interrupt, first_signal_sets_the_flag) {
  InterruptGuard guard;
  EXPECT_FALSE(interrupt_requested());
  std::raise(SIGTERM);
  EXPECT_TRUE(interrupt_requested());
  EXPECT_EQ(interrupt_signal(), SIGTERM);
}

TEST(Interrupt, a_guard_clears_the_flag_and_is_alone) {
  InterruptGuard guard;
  EXPECT_FALSE(interrupt_requested());
  request_interrupt();
  EXPECT_EQ(interrupt_signal(), SIGINT);
  EXPECT_NE(message_of<InternalError>([] { InterruptGuard second; }).find("second InterruptGuard"),
            std::string::npos);
}

TEST(InterruptDeathTest, second_signal_exits_at_once) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto twice = [](int first, int second) {
    InterruptGuard guard;
    std::raise(first);
    std::raise(second);
  };
  EXPECT_EXIT(twice(SIGINT, SIGINT), ::testing::ExitedWithCode(130), "once more stops at once");
  EXPECT_EXIT(twice(SIGINT, SIGTERM), ::testing::ExitedWithCode(143), "");
}

}  // namespace
}  // namespace moebius
