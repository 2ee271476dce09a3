#include "data/bpe/json_fields.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/text.h"

namespace moebius::data {
namespace {

using nlohmann::json;

const json kNull;

std::string shown(const json& value) {
  constexpr size_t kMost = 80;
  if (value.is_object()) return concat("an object of ", value.size(), " members");
  if (value.is_array()) return concat("a list of ", value.size(), " elements");
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kMost) {
    text.resize(kMost);
    text.resize(text.size() - unfinished_utf8_tail(text));
    text += "…";
  }
  return text;
}

}  // namespace

bool JsonField::is_null() const {
  return value_->is_null();
}

std::string JsonField::where() const {
  return *what_ + (path_.empty() ? "" : ": " + path_);
}

void JsonField::fail(const std::string& reason) const {
  throw_user_error(*what_, ": ", path_.empty() ? "the file" : path_, " is ", shown(*value_), ", ", reason);
}

void JsonField::expect_object() const {
  if (!value_->is_object()) fail("expected an object");
}

JsonField JsonField::find(const std::string& name) const {
  expect_object();
  const auto found = value_->find(name);
  return {found == value_->end() ? kNull : *found, *what_, path_.empty() ? name : path_ + "." + name};
}

JsonField JsonField::at(const std::string& name) const {
  expect_object();
  if (!value_->contains(name)) {
    throw_user_error(*what_, ": ", path_.empty() ? name : path_ + "." + name,
                     " is missing; it may be a broken download, or no such file");
  }
  return find(name);
}

JsonField JsonField::at(size_t i) const {
  return {(*value_)[i], *what_, concat(path_, "[", i, "]")};
}

size_t JsonField::array_size() const {
  if (!value_->is_array()) fail("expected a list");
  return value_->size();
}

std::string JsonField::string() const {
  if (!value_->is_string()) fail("expected a string");
  return value_->get<std::string>();
}

bool JsonField::boolean() const {
  if (!value_->is_boolean()) fail("expected true or false");
  return value_->get<bool>();
}

int64_t JsonField::integer(int64_t low, int64_t high) const {
  const bool fits =
      value_->is_number_integer() && !(value_->is_number_unsigned() && value_->get<uint64_t>() > INT64_MAX);
  if (!fits || value_->get<int64_t>() < low || value_->get<int64_t>() > high)
    fail(concat("expected an integer from ", low, " to ", high));
  return value_->get<int64_t>();
}

std::string JsonField::string_or(const std::string& name, const std::string& absent) const {
  const JsonField field = find(name);
  return field.is_null() ? absent : field.string();
}

bool JsonField::boolean_or(const std::string& name, bool absent) const {
  const JsonField field = find(name);
  return field.is_null() ? absent : field.boolean();
}

}  // namespace moebius::data
