#include "ckpt/hf/json_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "ckpt/text.h"

namespace moebius::ckpt::hf {
namespace {

using nlohmann::json;

constexpr double kLargestExact = 9007199254740992.0;  // 2^53

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 80) {
    text.resize(77);
    text += "...";
  }
  return text;
}

}  // namespace

JsonReader::JsonReader(const json& json, std::string where) : json_(&json), where_(std::move(where)) {}

json JsonReader::parse(std::string_view text, const std::string& where) {
  json parsed = parse_strict_json(text, where);
  if (!parsed.is_object()) throw_user_error(where, " is not a JSON object but ", parsed.type_name());
  return parsed;
}

bool JsonReader::has(const std::string& key) const {
  const auto found = json_->find(key);
  return found != json_->end() && !found->is_null();
}

const json& JsonReader::at(const std::string& key) const {
  const auto found = json_->find(key);
  if (found == json_->end()) throw_user_error(where_, ": the field '", key, "' is missing");
  return *found;
}

void JsonReader::wrong_kind(const std::string& key, const char* expected) const {
  throw_user_error(where_, ": '", key, "' is ", shown(at(key)), "; ", expected, " is expected");
}

int64_t JsonReader::integer(const std::string& key) const {
  const json& value = at(key);
  if (!value.is_number()) wrong_kind(key, "an integer");
  const auto number = value.get<double>();
  if (std::floor(number) != number || std::abs(number) > kLargestExact) wrong_kind(key, "an integer");
  return static_cast<int64_t>(number);
}

int64_t JsonReader::integer(const std::string& key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

int64_t JsonReader::integer_within(const std::string& key, int64_t low, int64_t high) const {
  const int64_t value = integer(key);
  if (value < low || value > high)
    throw_user_error(where_, ": ", key, " is ", value, "; allowed: ", low, " to ", high);
  return value;
}

double JsonReader::number(const std::string& key) const {
  const json& value = at(key);
  if (!value.is_number() || !std::isfinite(value.get<double>())) wrong_kind(key, "a number");
  return value.get<double>();
}

double JsonReader::number(const std::string& key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool JsonReader::boolean(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!at(key).is_boolean()) wrong_kind(key, "true or false");
  return at(key).get<bool>();
}

std::string JsonReader::text(const std::string& key) const {
  if (!at(key).is_string()) wrong_kind(key, "a text");
  return at(key).get<std::string>();
}

std::string JsonReader::text(const std::string& key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

std::vector<int64_t> JsonReader::integers(const std::string& key) const {
  std::vector<int64_t> values;
  if (!has(key)) return values;
  if (!at(key).is_array()) wrong_kind(key, "a list of integers");
  for (const json& value : at(key)) {
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}))
      wrong_kind(key, "a list of integers");
    values.push_back(value.get<int64_t>());
  }
  return values;
}

std::vector<std::string> JsonReader::texts(const std::string& key) const {
  std::vector<std::string> values;
  if (!has(key)) return values;
  if (!at(key).is_array()) wrong_kind(key, "a list of texts");
  for (const json& value : at(key)) {
    if (!value.is_string()) wrong_kind(key, "a list of texts");
    values.push_back(value.get<std::string>());
  }
  return values;
}

JsonReader JsonReader::object(const std::string& key) const {
  if (!at(key).is_object()) wrong_kind(key, "an object");
  return {at(key), where_ + ", " + key};
}

void JsonReader::need_boolean(const std::string& key, bool value) const {
  if (boolean(key, value) != value)
    throw_user_error(where_, ": ", key, " = ", shown(at(key)), " is not supported; only ",
                     value ? "true" : "false", " is");
}

void JsonReader::need_text(const std::string& key, const std::string& value) const {
  if (text(key, value) != value)
    throw_user_error(where_, ": ", key, " = ", shown(at(key)), " is not supported; only '", value, "' is");
}

void JsonReader::need_number(const std::string& key, double value) const {
  if (number(key, value) != value)
    throw_user_error(where_, ": ", key, " = ", shown(at(key)), " is not supported; only ", value, " is");
}

}  // namespace moebius::ckpt::hf
