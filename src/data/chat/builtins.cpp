#include "data/chat/builtins.h"

#include <algorithm>

#include "base/error.h"
#include "data/bpe/unicode.h"

namespace moebius::data::chat {

using Type = Value::Type;

std::vector<std::string> characters_of(std::string_view text) {
  std::vector<std::string> all;
  for (size_t at = 0; at < text.size();) {
    const size_t length = decode_utf8(text, at).length;
    all.emplace_back(text.substr(at, length));
    at += length;
  }
  return all;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to, int64_t most) {
  std::string out;
  size_t at = 0;
  for (int64_t count = 0; !from.empty() && (most < 0 || count < most); ++count) {
    const size_t found = text.find(from, at);
    if (found == std::string_view::npos) break;
    (out += text.substr(at, found - at)) += to;
    at = found + from.size();
  }
  return out += text.substr(at);
}

ArgumentReader::ArgumentReader(const std::string& what, const Arguments& arguments,
                               std::vector<std::string> names, const Location& at)
    : what_(what), names_(std::move(names)), values_(names_.size()), at_(at) {
  if (arguments.positional.size() > names_.size())
    at.fail(concat(what, " takes at most ", names_.size(), " arguments, not ", arguments.positional.size()));
  std::copy(arguments.positional.begin(), arguments.positional.end(), values_.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names_.begin(), names_.end(), name);
    if (found == names_.end()) at.fail(concat(what, " has no argument '", name, "'"));
    values_[static_cast<size_t>(found - names_.begin())] = value;
  }
}

const Value& ArgumentReader::required(size_t i) const {
  if (i >= values_.size() || !has(i)) at_.fail(concat(what_, " needs its argument '", names_[i], "'"));
  return values_[i];
}

const std::string& ArgumentReader::string(size_t i) const {
  if (!required(i).is(Type::kString))
    at_.fail(
        concat("argument '", names_[i], "' of ", what_, " is ", values_[i].kind(), ", expected a string"));
  return values_[i].string();
}

int64_t ArgumentReader::integer(size_t i, int64_t absent) const {
  if (!has(i)) return absent;
  if (!values_[i].is_whole())
    at_.fail(
        concat("argument '", names_[i], "' of ", what_, " is ", values_[i].kind(), ", expected an integer"));
  return values_[i].integer();
}

List elements_of(const Value& value, const Location& at) {
  List all;
  switch (value.type()) {
    case Type::kUndefined:
      break;
    case Type::kList:
      return value.list();
    case Type::kDict:
      for (const auto& [key, unused] : value.dict()) all.emplace_back(key);
      break;
    case Type::kString:
      for (std::string& character : characters_of(value.string())) all.emplace_back(std::move(character));
      break;
    default:
      at.fail("cannot go through " + value.kind());
  }
  return all;
}

Value attribute_of(const Value& object, const std::string& name, const Location& at) {
  if (object.is(Type::kUndefined)) at.fail("." + name + " of " + object.kind());
  if (object.is(Type::kDict))
    if (const Value* value = object.find(name)) return *value;
  return Value::undefined("'" + name + "'");
}

Value item_of(const Value& object, const Value& key, const Location& at) {
  if (object.is(Type::kUndefined)) at.fail("[" + key.repr() + "] of " + object.kind());
  if (object.is(Type::kDict) && key.is(Type::kString)) return attribute_of(object, key.string(), at);
  if ((object.is(Type::kList) || object.is(Type::kString)) && key.is_whole()) {
    const List all = elements_of(object, at);
    const auto size = static_cast<int64_t>(all.size());
    const int64_t i = key.integer() < 0 ? key.integer() + size : key.integer();
    if (i >= 0 && i < size) return all[static_cast<size_t>(i)];
  }
  return Value::undefined(key.repr());
}

bool contains(const Value& container, const Value& value, const Location& at) {
  switch (container.type()) {
    case Type::kUndefined:
      return false;
    case Type::kString:
      if (!value.is(Type::kString)) at.fail("'in' looks for " + value.kind() + " in a string");
      return container.string().find(value.string()) != std::string::npos;
    case Type::kDict:
      return value.is(Type::kString) && container.find(value.string()) != nullptr;
    case Type::kList:
      return std::find(container.list().begin(), container.list().end(), value) != container.list().end();
    default:
      at.fail("'in' looks into " + container.kind());
  }
}

int compare(const Value& a, const Value& b, const Location& at) {
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
    return a.real() < b.real() ? -1 : a.real() > b.real();
  }
  if (a.is(Type::kString) && b.is(Type::kString)) return a.string().compare(b.string());
  if (a.is(Type::kList) && b.is(Type::kList)) {
    for (size_t i = 0; i < std::min(a.list().size(), b.list().size()); ++i)
      if (!(a.list()[i] == b.list()[i])) return compare(a.list()[i], b.list()[i], at);
    return a.list().size() < b.list().size() ? -1 : a.list().size() > b.list().size();
  }
  at.fail("cannot compare " + a.kind() + " with " + b.kind());
}

bool call_test(const std::string& name, const Value& value, const Arguments& arguments, const Location& at) {
  const auto argument = [&]() -> const Value& {
    if (arguments.positional.size() != 1) at.fail("the test '" + name + "' takes one argument");
    return arguments.positional[0];
  };
  const auto whole = [&](const Value& each) {
    if (!each.is_whole()) at.fail("the test '" + name + "' needs integers, not " + each.kind());
    return each.integer();
  };
  if (name == "defined") return !value.is(Type::kUndefined);
  if (name == "undefined") return value.is(Type::kUndefined);
  if (name == "none") return value.is(Type::kNone);
  if (name == "boolean") return value.is(Type::kBoolean);
  if (name == "true") return value.is(Type::kBoolean) && value.truth();
  if (name == "false") return value.is(Type::kBoolean) && !value.truth();
  if (name == "integer") return value.is(Type::kInteger);
  if (name == "float") return value.is(Type::kReal);
  if (name == "number") return value.is_number();
  if (name == "string") return value.is(Type::kString);
  if (name == "mapping") return value.is(Type::kDict);
  if (name == "callable") return value.is(Type::kFunction);
  if (name == "iterable" || name == "sequence")
    return value.is(Type::kString) || value.is(Type::kList) || value.is(Type::kDict) ||
           value.is(Type::kUndefined);
  if (name == "eq" || name == "equalto" || name == "sameas") return value == argument();
  if (name == "ne") return !(value == argument());
  if (name == "lt" || name == "lessthan") return compare(value, argument(), at) < 0;
  if (name == "le") return compare(value, argument(), at) <= 0;
  if (name == "gt" || name == "greaterthan") return compare(value, argument(), at) > 0;
  if (name == "ge") return compare(value, argument(), at) >= 0;
  if (name == "in") return contains(argument(), value, at);
  if (name == "odd") return whole(value) % 2 != 0;
  if (name == "even") return whole(value) % 2 == 0;
  if (name == "divisibleby") {
    if (whole(argument()) == 0) at.fail("divisibleby 0");
    return whole(value) % whole(argument()) == 0;
  }
  at.fail("there is no test '" + name + "'");
}

}  // namespace moebius::data::chat
