#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "data/chat/builtins.h"
#include "data/chat/text_methods.h"

namespace moebius::data::chat {
namespace {

using Type = Value::Type;

// "a.b" of an element, as attribute= takes it; numbers are indices.
Value attribute_path(Value value, const Value& path, const Location& at) {
  if (path.is_whole()) return item_of(value, path, at);
  for (const std::string& name : split(path.text(), ".", -1)) value = attribute_of(value, name, at);
  return value;
}

int64_t length(const Value& value, const Location& at) {
  if (value.is(Type::kDict)) return static_cast<int64_t>(value.dict().size());
  if (value.is(Type::kNone) || value.is_number() || value.is(Type::kFunction))
    at.fail("length of " + value.kind());
  return static_cast<int64_t>(elements_of(value, at).size());
}

std::string indented(const std::string& text, const ArgumentReader& read) {
  const std::string margin =
      read.has(0) && read.value(0).is(Type::kString)
          ? read.value(0).string()
          : std::string(static_cast<size_t>(std::clamp<int64_t>(read.integer(0, 4), 0, 1000)), ' ');
  const bool first = read.truth(1, false), blank = read.truth(2, false);
  const std::vector<std::string> lines = split(text, "\n", -1);
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    if (i == 0 ? first : blank || !lines[i].empty()) out += margin;
    out += lines[i];
  }
  return out;
}

// select, reject, selectattr, rejectattr.
Value selection(const std::string& name, const Value& value, const Arguments& arguments, const Location& at) {
  const bool by_attribute = name.ends_with("attr"), keep = name.starts_with("select");
  const List& given = arguments.positional;
  if (by_attribute && given.empty()) at.fail(name + " needs the name of an attribute");
  const size_t test = by_attribute ? 1 : 0;
  Arguments rest;
  if (given.size() > test + 1)
    rest.positional.assign(given.begin() + static_cast<std::ptrdiff_t>(test) + 1, given.end());
  List kept;
  for (const Value& element : elements_of(value, at)) {
    const Value subject = by_attribute ? attribute_path(element, given[0], at) : element;
    const bool passes =
        given.size() > test ? call_test(given[test].text(), subject, rest, at) : subject.truth();
    if (passes == keep) kept.push_back(element);
  }
  return kept;
}

Value map(const Value& value, const Arguments& arguments, const Location& at) {
  List out;
  Arguments rest;
  Value attribute, absent;
  for (const auto& [name, given] : arguments.named) {
    if (name == "attribute") {
      attribute = given;
    } else if (name == "default") {
      absent = given;
    } else {
      rest.named.emplace_back(name, given);
    }
  }
  const bool by_attribute = !attribute.is(Type::kUndefined);
  if (!by_attribute && arguments.positional.empty()) at.fail("map needs a filter or attribute=");
  if (!by_attribute) rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  for (const Value& element : elements_of(value, at)) {
    if (by_attribute) {
      Value found = attribute_path(element, attribute, at);
      out.push_back(found.is(Type::kUndefined) && !absent.is(Type::kUndefined) ? absent : found);
    } else {
      out.push_back(call_filter(arguments.positional[0].text(), element, rest, at));
    }
  }
  return out;
}

Value sorted(const Value& value, const ArgumentReader& read, const Location& at) {
  List list = elements_of(value, at);
  const auto key = [&](const Value& element) {
    Value found = read.has(2) ? attribute_path(element, read.value(2), at) : element;
    return found.is(Type::kString) && !read.truth(1, false) ? Value(lower(found.string())) : found;
  };
  const bool reverse = read.truth(0, false);
  std::stable_sort(list.begin(), list.end(), [&](const Value& a, const Value& b) {
    const int order = compare(key(a), key(b), at);
    return reverse ? order > 0 : order < 0;
  });
  return list;
}

Value to_number(const std::string& name, const Value& value, const ArgumentReader& read) {
  const Value absent = read.has(0) ? read.value(0) : name == "int" ? Value(int64_t{0}) : Value(0.0);
  double number = 0;
  if (value.is_number()) {
    if (name == "int" && value.is_whole()) return value.integer();
    number = value.real();
  } else if (value.is(Type::kString)) {
    const std::string text = stripped(value.string(), "");
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return absent;
  } else {
    return absent;
  }
  if (name == "float") return number;
  return std::isfinite(number) && std::fabs(number) < 9e18 ? Value(static_cast<int64_t>(number)) : absent;
}

Value extreme(const std::string& name, const Value& value, const Location& at) {
  const List all = elements_of(value, at);
  if (all.empty()) return Value::undefined("'" + name + "' of nothing");
  const auto less = [&](const Value& a, const Value& b) { return compare(a, b, at) < 0; };
  return name == "min" ? *std::min_element(all.begin(), all.end(), less)
                       : *std::max_element(all.begin(), all.end(), less);
}

}  // namespace

Value call_filter(const std::string& name, const Value& value, const Arguments& arguments,
                  const Location& at) {
  const auto reader = [&](std::vector<std::string> names) {
    return ArgumentReader(name, arguments, std::move(names), at);
  };
  if (name == "default" || name == "d") {
    const auto read = reader({"default_value", "boolean"});
    const bool absent = value.is(Type::kUndefined) || (read.truth(1, false) && !value.truth());
    return !absent ? value : read.has(0) ? read.value(0) : Value("");
  }
  if (name == "trim") {
    const auto read = reader({"chars"});
    return stripped(value.text(), read.has(0) ? read.string(0) : "");
  }
  if (name == "tojson") {
    const auto read = reader({"indent", "ensure_ascii", "separators", "sort_keys"});
    if (read.truth(1, false) || read.truth(2, false) || read.truth(3, false))
      at.fail("tojson is supported with 'indent' only");
    if (value.is(Type::kUndefined)) at.fail("tojson of " + value.kind());
    return value.json(read.has(0) && !read.value(0).is(Type::kNone)
                          ? static_cast<int>(std::clamp<int64_t>(read.integer(0, 0), 0, 100))
                          : -1);
  }
  if (name == "length" || name == "count") return length(value, at);
  if (name == "string") return value.text();
  if (name == "safe") return value;
  if (name == "upper") return upper(value.text());
  if (name == "lower") return lower(value.text());
  if (name == "capitalize") return capitalized(value.text());
  if (name == "title") return title(value.text());
  if (name == "replace") {
    const auto read = reader({"old", "new", "count"});
    return replaced(value.text(), read.string(0), read.string(1), read.integer(2, -1));
  }
  if (name == "indent") return indented(value.text(), reader({"width", "first", "blank"}));
  if (name == "join") {
    const auto read = reader({"d", "attribute"});
    const List all = elements_of(value, at);
    std::string out;
    for (size_t i = 0; i < all.size(); ++i) {
      if (i > 0 && read.has(0)) out += read.value(0).text();
      out += (read.has(1) ? attribute_path(all[i], read.value(1), at) : all[i]).text();
    }
    return out;
  }
  if (name == "first" || name == "last") {
    const List all = elements_of(value, at);
    if (all.empty()) return Value::undefined("the " + name + " of nothing");
    return name == "first" ? all.front() : all.back();
  }
  if (name == "list") return elements_of(value, at);
  if (name == "items") {
    Value result = List{};
    if (value.is(Type::kUndefined)) return result;
    if (!value.is(Type::kDict)) at.fail("items of " + value.kind());
    call_method("items", value, {}, at, result);
    return result;
  }
  if (name == "dictsort") {
    Value items;
    if (!value.is(Type::kDict)) at.fail("dictsort of " + value.kind());
    call_method("items", value, {}, at, items);
    List list = items.list();
    std::stable_sort(list.begin(), list.end(), [](const Value& a, const Value& b) {
      return lower(a.list()[0].string()) < lower(b.list()[0].string());
    });
    return list;
  }
  if (name == "reverse") {
    List all = elements_of(value, at);
    std::reverse(all.begin(), all.end());
    if (!value.is(Type::kString)) return all;
    std::string text;
    for (const Value& character : all) text += character.string();
    return text;
  }
  if (name == "sort") return sorted(value, reader({"reverse", "case_sensitive", "attribute"}), at);
  if (name == "unique") {
    List kept;
    for (const Value& element : elements_of(value, at))
      if (std::find(kept.begin(), kept.end(), element) == kept.end()) kept.push_back(element);
    return kept;
  }
  if (name == "map") return map(value, arguments, at);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return selection(name, value, arguments, at);
  if (name == "int" || name == "float") return to_number(name, value, reader({"default"}));
  if (name == "abs" && value.is_number())
    return value.is_whole() ? Value(std::abs(value.integer())) : Value(std::fabs(value.real()));
  if (name == "min" || name == "max") return extreme(name, value, at);
  if (name == "sum") {
    double total = 0;
    int64_t whole = 0;
    bool real = false;
    for (const Value& element : elements_of(value, at)) {
      if (!element.is_number()) at.fail("sum meets " + element.kind());
      real |= !element.is_whole();
      total += element.real();
      whole += element.is_whole() ? element.integer() : 0;
    }
    return real ? Value(total) : Value(whole);
  }
  at.fail("there is no filter '" + name + "'");
}

}  // namespace moebius::data::chat
