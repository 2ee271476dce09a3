#include "base/log.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

class Log : public ::testing::Test {
 protected:
  ~Log() override { set_log_level(LogLevel::kInfo); }
};

TEST_F(Log, lines_carry_their_level_and_no_colour_without_a_terminal) {
  ::testing::internal::CaptureStderr();
  log_debug("hidden");
  log_info("step ", 3, " {} %s");
  log_warn("slow disk");
  log_error("lost ", 2.5);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "step 3 {} %s\nwarning: slow disk\nerror: lost 2.5\n");
}

TEST_F(Log, level_can_be_set_and_is_parsed_by_name) {
  set_log_level(parse_log_level("error"));
  ::testing::internal::CaptureStderr();
  log_warn("hidden");
  log_error("shown");
  set_log_level(LogLevel::kOff);
  log_error("hidden");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "error: shown\n");
  EXPECT_EQ(message_of<UserError>([] { parse_log_level("loud"); }),
            "log level 'loud' is unknown; use debug, info, warn, error or off");
}

TEST_F(Log, the_owner_of_the_last_line_steps_aside) {
  std::string events;
  set_log_line_owner([&] { events += "hide "; }, [&] { events += "show "; });
  ::testing::internal::CaptureStderr();
  log_info("x");
  set_log_line_owner({}, {});
  log_info("y");
  ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(events, "hide show ");
}

}  // namespace
}  // namespace moebius
