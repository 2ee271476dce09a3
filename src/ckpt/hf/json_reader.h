// Typed access to the fields of a JSON object that came from outside, with messages that name file and field.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::ckpt::hf {

class JsonReader {
 public:
  // `json` must outlive the reader. `where` stands in messages: "models/x/config.json".
  JsonReader(const nlohmann::json& json, std::string where);

  // Parses a text strictly (base/strict_json.h): UserError for anything but one JSON object.
  static nlohmann::json parse(std::string_view text, const std::string& where);

  const nlohmann::json& raw() const { return *json_; }
  const std::string& where() const { return where_; }

  // Whether there is a value that is not null.
  bool has(const std::string& key) const;

  // UserError when the field is missing or is not of the kind; the second form gives `fallback` when it is
  // missing or null. Integers must lie in [-2^53, 2^53].
  int64_t integer(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t fallback) const;
  int64_t integer_within(const std::string& key, int64_t low, int64_t high) const;
  double number(const std::string& key) const;
  double number(const std::string& key, double fallback) const;
  bool boolean(const std::string& key, bool fallback) const;
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> integers(const std::string& key) const;   // {} when missing
  std::vector<std::string> texts(const std::string& key) const;  // {} when missing
  JsonReader object(const std::string& key) const;

  // UserError unless the field is missing or has this value: for settings that nothing here can honour.
  void need_boolean(const std::string& key, bool value) const;
  void need_text(const std::string& key, const std::string& value) const;
  void need_number(const std::string& key, double value) const;

 private:
  const nlohmann::json& at(const std::string& key) const;
  [[noreturn]] void wrong_kind(const std::string& key, const char* expected) const;

  const nlohmann::json* json_;
  std::string where_;
};

}  // namespace moebius::ckpt::hf
