#include "data/chat/value.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/error.h"

namespace moebius::data::chat {
namespace {

// repr() of a Python float: the shortest digits that give the number again.
std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const double size = std::fabs(value);
  const bool fixed = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 fixed ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string text(buffer, end);
  if (fixed && text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string quoted(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      (out += '\\') += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      constexpr char kDigits[] = "0123456789abcdef";
      ((out += "\\x") += kDigits[byte >> 4]) += kDigits[byte & 15];
    } else {
      out += c;
    }
  }
  return out += quote;
}

}  // namespace

Value::Value(List value) : type_(Type::kList), list_(std::make_shared<List>(std::move(value))) {}
Value::Value(Dict value) : type_(Type::kDict), dict_(std::make_shared<Dict>(std::move(value))) {}
Value::Value(Function value)
    : type_(Type::kFunction), function_(std::make_shared<Function>(std::move(value))) {}

Value Value::tuple(List values) {
  Value value(std::move(values));
  value.tuple_ = true;
  return value;
}

Value Value::none() {
  Value value;
  value.type_ = Type::kNone;
  return value;
}

Value Value::undefined(std::string what) {
  Value value;
  value.string_ = std::move(what);
  return value;
}

Value Value::of_json(const nlohmann::ordered_json& json) {
  using Json = nlohmann::ordered_json;
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return json.get<int64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string:
      return json.get<std::string>();
    case Json::value_t::array: {
      List list;
      for (const auto& element : json) list.push_back(of_json(element));
      return list;
    }
    case Json::value_t::object: {
      Dict dict;
      for (const auto& [key, element] : json.items()) dict.emplace_back(key, of_json(element));
      return dict;
    }
    default:
      return none();
  }
}

std::string Value::kind() const {
  switch (type_) {
    case Type::kUndefined:
      return string_.empty() ? "undefined" : string_ + ", which is undefined";
    case Type::kNone:
      return "none";
    case Type::kBoolean:
      return "a boolean";
    case Type::kInteger:
      return "an integer";
    case Type::kReal:
      return "a number";
    case Type::kString:
      return "a string";
    case Type::kList:
      return "a list";
    case Type::kDict:
      return "a mapping";
    case Type::kFunction:
      return "a function";
  }
  return "";
}

bool Value::truth() const {
  switch (type_) {
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBoolean:
    case Type::kInteger:
      return integer_ != 0;
    case Type::kReal:
      return real_ != 0;
    case Type::kString:
      return !string_.empty();
    case Type::kList:
      return !list_->empty();
    case Type::kDict:
      return !dict_->empty();
    case Type::kFunction:
      return true;
  }
  return false;
}

const Value* Value::find(std::string_view key) const {
  MOEBIUS_CHECK(is(Type::kDict));
  for (const auto& [name, value] : *dict_)
    if (name == key) return &value;
  return nullptr;
}

std::string Value::text() const {
  if (type_ == Type::kString) return string_;
  return type_ == Type::kUndefined ? "" : repr();
}

std::string Value::repr() const {
  switch (type_) {
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "None";
    case Type::kBoolean:
      return integer_ != 0 ? "True" : "False";
    case Type::kInteger:
      return std::to_string(integer_);
    case Type::kReal:
      return real_text(real_);
    case Type::kString:
      return quoted(string_);
    case Type::kFunction:
      return "<function>";
    case Type::kList: {
      std::string out = tuple_ ? "(" : "[";
      for (const Value& element : *list_) out += (out.size() > 1 ? ", " : "") + element.repr();
      if (tuple_ && list_->size() == 1) out += ',';
      return out + (tuple_ ? ")" : "]");
    }
    case Type::kDict: {
      std::string out = "{";
      for (const auto& [key, value] : *dict_)
        out += (out.size() > 1 ? ", " : "") + quoted(key) + ": " + value.repr();
      return out + "}";
    }
  }
  return "";
}

std::string Value::json(int indent) const {
  std::string out;
  append_json(indent, 0, out);
  return out;
}

void Value::append_json(int indent, int depth, std::string& out) const {
  const auto line = [&](int level) {
    if (indent >= 0) (out += '\n').append(static_cast<size_t>(indent) * static_cast<size_t>(level), ' ');
  };
  const char* const comma = indent >= 0 ? "," : ", ";
  switch (type_) {
    case Type::kNone:
      out += "null";
      return;
    case Type::kBoolean:
      out += integer_ != 0 ? "true" : "false";
      return;
    case Type::kInteger:
    case Type::kReal:
      out += repr();
      return;
    case Type::kString:
      out += nlohmann::json(string_).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      return;
    case Type::kList: {
      if (list_->empty()) {
        out += "[]";
        return;
      }
      out += '[';
      for (size_t i = 0; i < list_->size(); ++i) {
        if (i > 0) out += comma;
        line(depth + 1);
        (*list_)[i].append_json(indent, depth + 1, out);
      }
      line(depth);
      out += ']';
      return;
    }
    case Type::kDict: {
      if (dict_->empty()) {
        out += "{}";
        return;
      }
      out += '{';
      bool first = true;
      for (const auto& [key, value] : *dict_) {
        if (!first) out += comma;
        first = false;
        line(depth + 1);
        Value(key).append_json(indent, depth + 1, out);
        out += ": ";
        value.append_json(indent, depth + 1, out);
      }
      line(depth);
      out += '}';
      return;
    }
    case Type::kUndefined:
    case Type::kFunction:
      throw_user_error("tojson of ", kind());
  }
}

bool Value::operator==(const Value& other) const {
  if (is_number() && other.is_number()) {
    return is_whole() && other.is_whole() ? integer_ == other.integer_ : real() == other.real();
  }
  if (type_ != other.type_) return false;
  switch (type_) {
    case Type::kString:
      return string_ == other.string_;
    case Type::kList:
      return tuple_ == other.tuple_ && *list_ == *other.list_;
    case Type::kDict: {
      if (dict_->size() != other.dict_->size()) return false;
      for (const auto& [key, value] : *dict_) {
        const Value* match = other.find(key);
        if (match == nullptr || !(*match == value)) return false;
      }
      return true;
    }
    case Type::kFunction:
      return function_ == other.function_;
    default:
      return true;
  }
}

}  // namespace moebius::data::chat
