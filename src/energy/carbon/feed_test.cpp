#include "energy/carbon/feed.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/log.h"
#include "base/test_folder.h"

namespace moebius::energy::carbon {
namespace {

constexpr int64_t kNoon = 1924992000 + 12 * 3600;

struct Script {
  std::variant<Answer, Refused> history = Answer{}, forecast = Answer{};
  int asked = 0;
};

class Scripted final : public Provider {
 public:
  explicit Scripted(Script& script) : script_(script) {}
  std::string name() const override { return "scripted"; }
  std::variant<Answer, Refused> history(double) override {
    ++script_.asked;
    return script_.history;
  }
  std::variant<Answer, Refused> forecast(double) override { return script_.forecast; }

 private:
  Script& script_;
};

// Hourly values that follow the hour of the day: 100 + hour.
Answer hours(int64_t begin, int64_t count, double level = 100) {
  Answer answer{.readings = {}, .step_s = 3600, .signal = "lifecycle average", .warnings = {}};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = begin + 3600 * i;
    answer.readings.push_back({at, level + static_cast<double>(at / 3600 % 24), false});
  }
  return answer;
}

class FeedTest : public testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kOff); }
  void TearDown() override { set_log_level(LogLevel::kInfo); }
  Feed feed(const FeedOptions& options = {}) { return {std::make_unique<Scripted>(script), options}; }
  static Refused refusal(ErrorKind kind, double retry_after_s = 0) {
    return {make_error(kind, "no"), retry_after_s};
  }
  Script script;
};

TEST_F(FeedTest, the_providers_forecast_then_the_readings) {
  script.history = hours(kNoon - 20 * 86400, 20 * 24);
  script.forecast = hours(kNoon, 24, 500);
  Feed f = feed();
  EXPECT_TRUE(f.refresh(kNoon + 60));
  const auto view = f.view(kNoon + 60, kNoon + 48 * 3600);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->begin_unix_s, kNoon);
  EXPECT_GE(view->values.size(), 48u);
  EXPECT_EQ(view->values[0], 512);
  EXPECT_EQ(view->values[23], 511);
  EXPECT_NEAR(view->values[24], 112, 1);  // as the days before
  EXPECT_TRUE(view->deviations.empty());
  EXPECT_EQ(f.signal(), "lifecycle average");
}

TEST_F(FeedTest, readings_alone_know_their_error) {
  script.history = hours(kNoon - 20 * 86400, 20 * 24);
  Feed f = feed();
  f.refresh(kNoon);
  const auto view = f.view(kNoon, kNoon + 30 * 3600);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->deviations.size(), view->values.size());
  EXPECT_NEAR(view->values[5], 117, 1);
}

TEST_F(FeedTest, nothing_known_says_nothing) {
  Feed f = feed();
  EXPECT_FALSE(f.refresh(kNoon));
  EXPECT_FALSE(f.view(kNoon, kNoon + 3600));
  EXPECT_TRUE(f.is_stale(kNoon));
}

TEST_F(FeedTest, asks_later_and_later_while_it_fails_and_keeps_what_it_has) {
  script.history = hours(kNoon - 2 * 86400, 48);
  Feed f = feed({.refresh_s = 100, .first_retry_s = 10, .longest_retry_s = 60});
  f.refresh(kNoon);
  EXPECT_FALSE(f.refresh(kNoon + 99));
  EXPECT_EQ(script.asked, 1);
  script.history = refusal(ErrorKind::kUnavailable);
  for (int second = 100; second < 300; ++second) f.refresh(kNoon + second);
  EXPECT_EQ(script.asked, 1 + 6);  // at 100, 110, 130, 170, 230, 290
  EXPECT_EQ(f.failures(), 6);
  EXPECT_EQ(f.last_error(), "no");
  EXPECT_TRUE(f.view(kNoon + 300, kNoon + 7200));
  EXPECT_FALSE(f.is_stale(kNoon + 300));
  EXPECT_TRUE(f.is_stale(kNoon + 4 * 3600));
  script.history = hours(kNoon - 2 * 86400, 49);
  EXPECT_TRUE(f.refresh(kNoon + 400));
  EXPECT_EQ(f.last_error(), "");
  EXPECT_EQ(f.last_success_s(), kNoon + 400);
}

TEST_F(FeedTest, waits_as_long_as_the_server_says) {
  script.history = refusal(ErrorKind::kUnavailable, 5000);
  Feed f = feed();
  f.refresh(kNoon);
  f.refresh(kNoon + 4999);
  EXPECT_EQ(script.asked, 1);
  script.history = refusal(ErrorKind::kPermission);
  f.refresh(kNoon + 5000);
  f.refresh(kNoon + 5000 + 3599);
  EXPECT_EQ(script.asked, 2);  // a refused token is tried hourly
}

TEST_F(FeedTest, an_old_forecast_holds_until_its_end) {
  script.history = hours(kNoon - 2 * 86400, 48);
  script.forecast = hours(kNoon, 24, 500);
  Feed f = feed();
  f.refresh(kNoon);
  script.history = refusal(ErrorKind::kTimeout);
  f.refresh(kNoon + 1000);
  EXPECT_EQ(f.view(kNoon + 10 * 3600, kNoon + 11 * 3600)->values[0], 500 + 22);
  EXPECT_FALSE(f.is_stale(kNoon + 10 * 3600));
  EXPECT_LT(f.view(kNoon + 25 * 3600, kNoon + 26 * 3600)->values[0], 200);
  EXPECT_TRUE(f.is_stale(kNoon + 25 * 3600));
}

TEST_F(FeedTest, wrong_clocks_are_not_believed) {
  script.history = hours(kNoon - 86400, 30);            // six hours ahead
  script.forecast = hours(kNoon - 48 * 3600, 24, 500);  // ended yesterday
  Feed f = feed();
  f.refresh(kNoon);
  EXPECT_NEAR(f.view(kNoon + 3600, kNoon + 7200)->values[0], 113, 1);
}

TEST_F(FeedTest, short_holes_are_bridged_and_long_ones_end_the_past) {
  Answer answer = hours(kNoon - 10 * 86400, 240);
  auto& readings = answer.readings;
  readings.erase(readings.begin() + 200, readings.begin() + 203);
  script.history = answer;
  Feed f = feed({.forecaster = "persistence"});
  f.refresh(kNoon);
  EXPECT_NEAR(f.view(kNoon, kNoon + 3600)->values[0], 112, 1e-9);
  readings.erase(readings.begin() + 100, readings.end() - 2);  // two are left
  script.history = answer;
  Feed g = feed({.forecaster = "persistence"});
  g.refresh(kNoon);
  EXPECT_NEAR(g.view(kNoon, kNoon + 3600)->values[0], 111, 1e-9);  // less than a day is known: flat
}

TEST_F(FeedTest, another_signal_is_never_mixed_in) {
  script.history = hours(kNoon - 86400, 24);
  Feed f = feed({.refresh_s = 1});
  f.refresh(kNoon);
  Answer other = hours(kNoon - 7200, 2, 900);
  other.signal = "marginal";
  script.history = other;
  f.refresh(kNoon + 10);
  EXPECT_EQ(f.signal(), "marginal");
  EXPECT_NEAR(f.view(kNoon + 10, kNoon + 3600)->values[0], 911, 1e-9);
}

TEST_F(FeedTest, a_restart_goes_on_from_the_cache) {
  const TestFolder folder;
  const FeedOptions options{.cache = folder / "grid.json"};
  script.history = hours(kNoon - 20 * 86400, 20 * 24);
  script.forecast = hours(kNoon, 24, 500);
  feed(options).refresh(kNoon);
  script.history = script.forecast = refusal(ErrorKind::kUnavailable);
  Feed f = feed(options);
  f.refresh(kNoon + 3600);
  EXPECT_EQ(f.view(kNoon + 3600, kNoon + 7200)->values[0], 513);
  EXPECT_EQ(f.signal(), "lifecycle average");
  for (const char* text : {"{", "[]", R"({"provider":"scripted"})"}) {
    write_file_atomic(folder / "grid.json", text);
    Feed g = feed(options);
    EXPECT_FALSE(g.view(kNoon, kNoon + 3600)) << text;
  }
}

}  // namespace
}  // namespace moebius::energy::carbon
