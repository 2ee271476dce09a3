#include "config/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/test_folder.h"
#include "config/dump.h"

namespace moebius::config {
namespace {

using Json = nlohmann::ordered_json;

TEST(Json, text_round_trip_gives_the_same_config) {
  RunConfig config;
  config.data.files = {"a\n\"b\""};
  config.data.weights = {1.0 / 3, 1e-300};
  config.model.moe.dense_layers = {0, 2};
  config.model.moe.balance.bias_rate = 0.001;
  config.train.seed = int64_t{1} << 62;
  config.train.deterministic = true;
  const Json json = Json::parse(to_json(config).dump());
  EXPECT_EQ(describe_differences(diff(config, from_json(json, "manifest.json"))), "");
  EXPECT_EQ(json["model"]["moe"]["balance"]["bias_rate"], 0.001);
}

TEST(Json, absent_fields_keep_defaults) {
  EXPECT_TRUE(diff(RunConfig{}, from_json(Json::object(), "m")).empty());
  EXPECT_EQ(from_json(Json::parse(R"({"train": {"steps": 4}})"), "m").train.steps, 4);
}

TEST(Json, mistakes_name_field_and_source) {
  const auto mistake = [](const char* text) {
    return message_of<UserError>([&] { from_json(Json::parse(text), "m.json"); });
  };
  EXPECT_EQ(mistake(R"({"train": {"stpes": 4}})"),
            "unknown field 'train.stpes' (m.json); did you mean 'train.steps'?");
  EXPECT_EQ(mistake(R"({"train": {"steps": "4"}})"),
            "'train.steps' is \"4\" (m.json); it takes an integer, allowed: at least 1");
  EXPECT_EQ(mistake(R"({"train": {"seed": 18446744073709551615}})"),
            "'train.seed' is 18446744073709551615 (m.json); it takes an integer, allowed: at least 0");
  EXPECT_EQ(mistake(R"({"train": 4})"), "'train' is 4 (m.json); it is a section, not a field");
  EXPECT_EQ(mistake("[]"), "the config in m.json is not a JSON object");
}

}  // namespace
}  // namespace moebius::config
