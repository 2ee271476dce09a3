#include "base/strict_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace moebius {
namespace {

std::string json_refusal(const std::string& text) {
  try {
    parse_strict_json(text, "f.json");
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(StrictJson, gives_the_document) {
  EXPECT_EQ(parse_strict_json(R"({"a": [1, {"a": null}], "b": {"a": "x"}})", "f.json")["b"]["a"], "x");
  EXPECT_TRUE(parse_strict_json("[]", "f.json").is_array());
}

TEST(StrictJson, refuses_a_key_that_occurs_twice_and_says_where) {
  EXPECT_EQ(json_refusal(R"({"a": 1, "b": 2, "a": 3})"), "f.json: the key \"a\" occurs twice");
  EXPECT_EQ(json_refusal(R"({"m": {"v": {"x": 1, "x": 2}}})"), "f.json: the key \"x\" occurs twice in m.v");
  EXPECT_EQ(json_refusal(R"({"m": [{"v": 1}, {"x": 1, "x": 2}]})"),
            "f.json: the key \"x\" occurs twice in m.[]");
}

TEST(StrictJson, refuses_what_is_not_json_and_what_is_too_deep) {
  const std::string reason = json_refusal("{\"a\": ");
  EXPECT_TRUE(reason.starts_with("f.json is not JSON: parse error at line 1, column 7: ")) << reason;
  EXPECT_TRUE(reason.ends_with("; it may be a broken download: fetch it again")) << reason;
  EXPECT_NE(json_refusal("{\"a\": \"\xFF\"}"), "nothing was refused");
  EXPECT_EQ(json_refusal(std::string(100, '[') + std::string(100, ']')), "nothing was refused");
  EXPECT_EQ(json_refusal(std::string(100'000, '[')), "f.json: more than 100 levels of objects and lists");
}

}  // namespace
}  // namespace moebius
