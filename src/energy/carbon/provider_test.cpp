#include "energy/carbon/provider.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "base/file.h"
#include "base/replay_server.h"
#include "base/test_folder.h"

namespace moebius::energy::carbon {
namespace {

constexpr int64_t kFirstNoon = 1924992000 + 12 * 3600;  // 2031-01-01T12:00Z

std::string recorded(const std::string& name) {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  return read_file(std::filesystem::path(source == nullptr ? "." : source) / "tests/data/carbon" /
                   (name + ".json"));
}

// Answers as the three interfaces do.
ReplayAnswer answer(const std::string& request) {
  const auto asks = [&](const char* path) { return request.starts_with(std::string("GET ") + path); };
  if (asks("/v3/carbon-intensity/")) {
    if (request.find("auth-token: good") == std::string::npos)
      return {401, recorded("electricitymaps_error_401"), ""};
    return {200,
            recorded(asks("/v3/carbon-intensity/history?zone=XX-TEST ") ? "electricitymaps_history"
                                                                        : "electricitymaps_forecast"),
            ""};
  }
  if (asks("/intensity/")) {
    if (request.find("/fw24h ") != std::string::npos) return {200, recorded("gb_intensity_fw24h"), ""};
    return {200, recorded("gb_intensity_range"), ""};
  }
  if (asks("/login")) {
    if (request.find("Authorization: Basic dXNlcjpwYXNz") == std::string::npos)
      return {401, recorded("watttime_error_401"), ""};
    return {200, recorded("watttime_login"), ""};
  }
  if (request.find("Bearer synthetic-token-not-valid") == std::string::npos)
    return {401, recorded("watttime_error_401"), ""};
  return {200, recorded(asks("/v3/forecast") ? "watttime_forecast" : "watttime_historical"), ""};
}

class ProviderTest : public testing::Test {
 protected:
  std::unique_ptr<Provider> provider(const std::string& source) {
    return make_provider(source, make_curl_client(5), {.url = server.url()});
  }
  ReplayServer server{answer};
};

const Answer& good(const std::variant<Answer, Refused>& outcome) {
  if (const auto* refused = std::get_if<Refused>(&outcome)) ADD_FAILURE() << refused->error.message;
  return std::get<Answer>(outcome);
}

TEST_F(ProviderTest, electricity_maps) {
  setenv("ELECTRICITYMAPS_TOKEN", "good", 1);
  const auto maps = provider("electricitymaps:XX-TEST");
  const auto history = maps->history(kFirstNoon);
  EXPECT_EQ(good(history).signal, "lifecycle average");
  ASSERT_EQ(good(history).readings.size(), 24u);
  EXPECT_EQ(good(history).readings.back().begin_unix_s, kFirstNoon);
  EXPECT_EQ(good(history).readings.back().grams_per_kwh, 500);
  int estimated = 0;
  for (const Reading& each : good(history).readings) estimated += each.estimated;
  EXPECT_EQ(estimated, 2);
  const auto forecast = maps->forecast(kFirstNoon);
  ASSERT_EQ(good(forecast).readings.size(), 24u);
  EXPECT_EQ(good(forecast).readings[6].grams_per_kwh, 600);

  setenv("ELECTRICITYMAPS_TOKEN", "wrong", 1);
  const auto refused = provider("electricitymaps:XX-TEST")->history(kFirstNoon);
  ASSERT_TRUE(std::holds_alternative<Refused>(refused));
  EXPECT_EQ(std::get<Refused>(refused).error.kind, ErrorKind::kPermission);
  EXPECT_NE(
      std::get<Refused>(refused).error.message.find("Electricity Maps, XX-TEST refuses the token (401)"),
      std::string::npos);
}

TEST_F(ProviderTest, great_britain) {
  const auto gb = provider("gb");
  const auto history = gb->history(kFirstNoon);
  EXPECT_EQ(good(history).signal, "direct average");
  EXPECT_EQ(good(history).step_s, 1800);
  EXPECT_EQ(good(history).readings.front().grams_per_kwh, 150);  // actual, not the 153 of the forecast
  EXPECT_EQ(good(gb->forecast(kFirstNoon)).readings.front().grams_per_kwh, 250);
  EXPECT_NE(server.requests()[0].find("GET /intensity/2030-12-19T12:00Z/2031-01-01T12:00Z "),
            std::string::npos);
}

TEST_F(ProviderTest, watttime_logs_in_and_is_marginal) {
  setenv("WATTTIME_USER", "user", 1);
  setenv("WATTTIME_PASSWORD", "pass", 1);
  const auto watttime = provider("watttime:TEST_REGION");
  const auto forecast = watttime->forecast(kFirstNoon);
  EXPECT_EQ(good(forecast).signal, "marginal");
  EXPECT_EQ(good(forecast).step_s, 300);
  ASSERT_EQ(good(forecast).readings.size(), 288u);
  EXPECT_NEAR(good(forecast).readings[0].grams_per_kwh, 453.59237, 1e-9);
  EXPECT_NEAR(good(watttime->history(kFirstNoon)).readings[1].grams_per_kwh, 901 * 0.45359237, 1e-9);
  EXPECT_EQ(server.requests().size(), 3u);  // one login
}

TEST_F(ProviderTest, a_server_that_is_not_there_or_busy) {
  const auto gone =
      make_provider("gb", make_curl_client(1), {.url = "http://127.0.0.1:9"})->history(kFirstNoon);
  EXPECT_EQ(std::get<Refused>(gone).error.kind, ErrorKind::kUnavailable);
  const ReplayServer busy([](const std::string&) { return ReplayAnswer{429, "", "Retry-After: 77\r\n"}; });
  const auto later = make_provider("gb", make_curl_client(5), {.url = busy.url()})->history(kFirstNoon);
  EXPECT_EQ(std::get<Refused>(later).retry_after_s, 77);
  EXPECT_NE(std::get<Refused>(later).error.message.find("asks for fewer requests (429)"), std::string::npos);
  const ReplayServer bad([](const std::string&) { return ReplayAnswer{400, recorded("gb_error_400"), ""}; });
  const auto wrong = make_provider("gb", make_curl_client(5), {.url = bad.url()})->history(kFirstNoon);
  EXPECT_EQ(std::get<Refused>(wrong).error.kind, ErrorKind::kInvalid);
}

TEST(Provider, names_and_secrets_are_checked) {
  unsetenv("ELECTRICITYMAPS_TOKEN");
  EXPECT_NE(message_of<UserError>([] {
              make_provider("electricitymaps:DE", nullptr);
            }).find("needs the environment variable ELECTRICITYMAPS_TOKEN"),
            std::string::npos);
  setenv("ELECTRICITYMAPS_TOKEN", "good", 1);
  EXPECT_NE(
      message_of<UserError>([] { make_provider("electricitymaps:D E&x=1", nullptr); }).find("is no zone"),
      std::string::npos);
  EXPECT_NE(message_of<UserError>([] { make_provider("nowhere.csv", nullptr); }).find("is no file, nor gb"),
            std::string::npos);
}

TEST(Provider, a_file_gives_what_is_over) {
  const TestFolder folder;
  write_file_atomic(folder / "XX.csv",
                    "utc_iso8601,lifecycle_g_per_kwh,direct_g_per_kwh\n2031-01-01T10:00:00Z,100,50\n"
                    "2031-01-01T11:00:00Z,110,55\n2031-01-01T12:00:00Z,120,60\n");
  const auto file =
      make_provider((folder / "XX.csv").string(), nullptr, {.url = "", .scope = Scope::kDirect});
  const auto history = file->history(kFirstNoon + 60);
  ASSERT_EQ(good(history).readings.size(), 2u);
  EXPECT_EQ(good(history).readings[1].grams_per_kwh, 55);
  EXPECT_EQ(good(history).signal, "direct average");
  EXPECT_TRUE(good(file->forecast(kFirstNoon)).readings.empty());
}

TEST(Answers, gaps_order_and_repeats) {
  EXPECT_EQ(parse_electricity_maps(recorded("electricitymaps_history_gap"), "history")->readings.size(), 21u);
  const auto mixed = parse_electricity_maps(
      R"({"history":[{"carbonIntensity":2,"datetime":"2031-01-01T13:00:00.000Z"},
                     {"carbonIntensity":1,"datetime":"2031-01-01T12:00:00.000Z"},
                     {"carbonIntensity":3,"datetime":"2031-01-01T13:00:00.000Z"},
                     {"carbonIntensity":null,"datetime":"2031-01-01T14:00:00.000Z"}]})",
      "history");
  ASSERT_TRUE(mixed);
  ASSERT_EQ(mixed->readings.size(), 2u);
  EXPECT_EQ(mixed->readings[1].grams_per_kwh, 3);  // the later one holds
  EXPECT_EQ(mixed->signal, "average, scope not stated");
  EXPECT_EQ(parse_watttime(recorded("watttime_warning"))->warnings.size(), 1u);
}

TEST(Answers, what_is_no_answer_is_refused) {
  const auto refused = [](const Result<Answer>& answer) {
    return answer ? std::string() : answer.error().message;
  };
  EXPECT_NE(refused(parse_gb("<html>", GbValue::kActual)).find("no JSON in the answer '<html>'"),
            std::string::npos);
  EXPECT_NE(refused(parse_gb(R"({"error":1})", GbValue::kActual)), "");
  EXPECT_NE(refused(parse_gb(R"({"data":[{"from":"2031-01-01T12:00Z"}]})", GbValue::kActual)), "");
  EXPECT_NE(refused(parse_electricity_maps(
                R"({"history":[{"carbonIntensity":"many","datetime":"2031-01-01T12:00Z"}]})", "history")),
            "");
  EXPECT_NE(refused(parse_electricity_maps(
                R"({"history":[{"carbonIntensity":1e9,"datetime":"2031-01-01T12:00Z"}]})", "history")),
            "");
  EXPECT_NE(refused(parse_electricity_maps(R"({"history":[{"carbonIntensity":1,"datetime":"yesterday"}]})",
                                           "history")),
            "");
  EXPECT_NE(
      refused(parse_electricity_maps(R"({"history":[{"carbonIntensity":1,"datetime":"2031-01-01T12:07Z"},
                                                          {"carbonIntensity":1,"datetime":"2031-01-01T13:07Z"}]})",
                                     "history")),
      "");
  EXPECT_NE(refused(parse_electricity_maps(
                R"({"history":[{"carbonIntensity":1,"datetime":"2031-01-01T12:00Z","isEstimated":"yes"}]})",
                "history")),
            "");
  // What a provider says of another place than was asked for, as of an unknown zone.
  EXPECT_NE(refused(parse_electricity_maps(recorded("electricitymaps_history"), "history", "DE"))
                .find("another zone than was asked for"),
            std::string::npos);
  EXPECT_TRUE(parse_electricity_maps(recorded("electricitymaps_history"), "history", "XX-TEST"));
  EXPECT_NE(refused(parse_watttime(recorded("watttime_forecast"), "CAISO_NORTH"))
                .find("another region than was asked for"),
            std::string::npos);
  // A percentile is no intensity.
  EXPECT_NE(refused(parse_watttime(recorded("watttime_signal_index"))).find("no intensity"),
            std::string::npos);
}

TEST(Answers, times) {
  EXPECT_EQ(*parse_utc("2031-01-01T12:00:00.000Z"), kFirstNoon);
  EXPECT_EQ(*parse_utc("2031-01-01T12:00Z"), kFirstNoon);
  EXPECT_EQ(*parse_utc("2031-01-01T12:00:07+00:00"), kFirstNoon + 7);
  for (const char* text : {"", "2031-01-01", "2031-01-01T12:00", "2031-01-01T12:00+01:00",
                           "2031-02-30T12:00Z", "2031-01-01T24:00Z", "2031-01-01T12:00:00.Zx"})
    EXPECT_FALSE(parse_utc(text)) << text;
}

TEST(Http, authorization) {
  EXPECT_EQ(basic_authorization("user", "pass"), "Basic dXNlcjpwYXNz");
  EXPECT_EQ(basic_authorization("a", ""), "Basic YTo=");
  EXPECT_EQ(basic_authorization("", ""), "Basic Og==");
}

}  // namespace
}  // namespace moebius::energy::carbon
