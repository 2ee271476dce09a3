// Reading JSON files of users (parsed by base/strict_json.h): every problem is a UserError that names file,
// field and value.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace moebius::data {

// A JSON value and where it stands ("model.vocab"), for messages. A view: the value must outlive it.
class JsonField {
 public:
  // `what` begins messages: "tokenizer DIR/tokenizer.json".
  JsonField(const nlohmann::json& value, const std::string& what, std::string path = "")
      : value_(&value), what_(&what), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  const std::string& what() const { return *what_; }
  bool is_null() const;

  // The member `name` of an object: one that must be there, or null when it is absent or null.
  JsonField at(const std::string& name) const;
  JsonField find(const std::string& name) const;
  // Element i of an array.
  JsonField at(size_t i) const;
  size_t array_size() const;

  std::string string() const;
  bool boolean() const;
  // An integer in [low, high].
  int64_t integer(int64_t low, int64_t high) const;
  std::string string_or(const std::string& name, const std::string& absent) const;
  bool boolean_or(const std::string& name, bool absent) const;

  // Throws UserError "<what>: <path> is <value>, <reason>".
  [[noreturn]] void fail(const std::string& reason) const;
  // "tokenizer F: normalizer.type", for messages of others.
  std::string where() const;

 private:
  void expect_object() const;

  const nlohmann::json* value_;
  const std::string* what_;
  std::string path_;
};

}  // namespace moebius::data
