#include "base/result.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "base/check.h"
#include "base/error.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

Result<int> half(int x) {
  if (x % 2) return make_error(ErrorKind::kInvalid, x, " is odd");
  return x / 2;
}

TEST(Result, holds_a_value_or_an_error) {
  EXPECT_EQ(half(8).value(), 4);
  EXPECT_EQ(half(7).value_or(-1), -1);
  ASSERT_FALSE(half(7));
  EXPECT_EQ(half(7).error().message, "7 is odd");
  EXPECT_STREQ(error_kind_name(half(7).error().kind), "invalid");
  Result<std::unique_ptr<int>> owned = std::make_unique<int>(3);
  EXPECT_EQ(**owned, 3);
  std::unique_ptr<int> taken = *std::move(owned);
  EXPECT_EQ(*taken, 3);
}

TEST(Result, misuse_is_a_bug_with_the_error_in_its_text) {
  EXPECT_THAT(message_of<InternalError>([] { (void)half(7).value(); }), HasSubstr("7 is odd"));
  EXPECT_THAT(message_of<InternalError>([] { (void)half(8).error(); }), HasSubstr("holds a value"));
  Result<void> done;
  EXPECT_TRUE(done.ok());
  EXPECT_THROW((void)done.error(), InternalError);
}

TEST(Check, prints_both_values_and_the_place) {
  const auto text = message_of<InternalError>([] { MOEBIUS_CHECK_EQ(1 + 1, 3, "sum of ones"); });
  EXPECT_THAT(text, HasSubstr("check failed: 1 + 1 == 3 (2 vs 3) sum of ones"));
  EXPECT_THAT(text, HasSubstr("result_test.cpp:"));
  EXPECT_THAT(message_of<UserError>([] { throw_user_error("a is ", 1); }), "a is 1");
}

}  // namespace
}  // namespace moebius
