#include <algorithm>

#include "base/error.h"
#include "data/bpe/unicode.h"
#include "data/chat/builtins.h"
#include "data/chat/text_methods.h"

namespace moebius::data::chat {
namespace {

using Type = Value::Type;

List to_list(std::vector<std::string> strings) {
  List list;
  for (std::string& text : strings) list.emplace_back(std::move(text));
  return list;
}

// A prefix or suffix, or one of several.
bool any_affix(const Value& affixes, const Location& at, const auto& fits) {
  if (affixes.is(Type::kString)) return fits(affixes.string());
  const List all = elements_of(affixes, at);
  return std::any_of(all.begin(), all.end(), [&](const Value& each) { return fits(each.text()); });
}

bool all_characters(const std::string& text, uint32_t categories) {
  for (size_t at = 0; at < text.size();) {
    const Decoded c = decode_utf8(text, at);
    if ((category_bit(c.code) & categories) == 0) return false;
    at += c.length;
  }
  return !text.empty();
}

bool string_method(const std::string& name, const std::string& text, const Arguments& arguments,
                   const Location& at, Value& result) {
  const auto reader = [&](std::vector<std::string> names) {
    return ArgumentReader(name, arguments, std::move(names), at);
  };
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const auto read = reader({"chars"});
    const bool given = read.has(0) && !read.value(0).is(Type::kNone);
    result = stripped(text, given ? read.string(0) : "", name != "rstrip", name != "lstrip");
  } else if (name == "upper") {
    result = upper(text);
  } else if (name == "lower") {
    result = lower(text);
  } else if (name == "capitalize") {
    result = capitalized(text);
  } else if (name == "title") {
    result = title(text);
  } else if (name == "startswith") {
    result = any_affix(reader({"prefix"}).required(0), at,
                       [&](const auto& each) { return text.starts_with(each); });
  } else if (name == "endswith") {
    result =
        any_affix(reader({"suffix"}).required(0), at, [&](const auto& each) { return text.ends_with(each); });
  } else if (name == "removeprefix") {
    const auto read = reader({"prefix"});
    result = text.starts_with(read.string(0)) ? text.substr(read.string(0).size()) : text;
  } else if (name == "removesuffix") {
    const auto read = reader({"suffix"});
    result = text.ends_with(read.string(0)) ? text.substr(0, text.size() - read.string(0).size()) : text;
  } else if (name == "split" || name == "rsplit") {
    const auto read = reader({"sep", "maxsplit"});
    const bool given = read.has(0) && !read.value(0).is(Type::kNone);
    if (given && read.string(0).empty()) at.fail(name + " at an empty separator");
    const auto parts = name == "split" ? split : split_from_right;
    result = to_list(parts(text, given ? read.string(0) : "", read.integer(1, -1)));
  } else if (name == "splitlines") {
    result = to_list(split_lines(text));
  } else if (name == "replace") {
    const auto read = reader({"old", "new", "count"});
    result = replaced(text, read.string(0), read.string(1), read.integer(2, -1));
  } else if (name == "find" || name == "count") {
    const auto read = reader({"sub"});
    const std::string& part = read.string(0);
    if (name == "find") {
      const size_t found = text.find(part);
      result = found == std::string::npos ? int64_t{-1}
                                          : static_cast<int64_t>(characters_of(text.substr(0, found)).size());
    } else {
      int64_t count = 0;
      for (size_t i = text.find(part); !part.empty() && i != std::string::npos;
           i = text.find(part, i + part.size()))
        ++count;
      result = count;
    }
  } else if (name == "join") {
    const auto read = reader({"iterable"});
    std::string joined;
    const List all = elements_of(read.required(0), at);
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i].is(Type::kString)) at.fail("join meets " + all[i].kind() + ", expected strings");
      (joined += i > 0 ? text : "") += all[i].string();
    }
    result = joined;
  } else if (name == "isdigit" || name == "isdecimal" || name == "isnumeric") {
    result = all_characters(text, name == "isnumeric" ? kNumbers : categories({Category::Nd}));
  } else if (name == "isalpha") {
    result = all_characters(text, kLetters);
  } else if (name == "isspace") {
    result = !text.empty() && stripped(text, "").empty();
  } else {
    return false;
  }
  return true;
}

bool dict_method(const std::string& name, const Value& object, const Arguments& arguments, const Location& at,
                 Value& result) {
  if (name == "get") {
    const ArgumentReader read(name, arguments, {"key", "default"}, at);
    const Value& key = read.required(0);
    const Value* found = key.is(Type::kString) ? object.find(key.string()) : nullptr;
    result = found ? *found : read.has(1) ? read.value(1) : Value::none();
    return true;
  }
  if (name != "items" && name != "keys" && name != "values") return false;
  const ArgumentReader read(name, arguments, {}, at);
  List all;
  for (const auto& [key, value] : object.dict()) {
    if (name == "keys") {
      all.emplace_back(key);
    } else if (name == "values") {
      all.push_back(value);
    } else {
      all.push_back(Value::tuple({Value(key), value}));
    }
  }
  result = all;
  return true;
}

}  // namespace

bool call_method(const std::string& name, const Value& object, const Arguments& arguments, const Location& at,
                 Value& result) {
  if (object.is(Type::kString)) return string_method(name, object.string(), arguments, at, result);
  if (object.is(Type::kDict)) return dict_method(name, object, arguments, at, result);
  if (!object.is(Type::kList) || (name != "index" && name != "count")) return false;
  const ArgumentReader read(name, arguments, {"value"}, at);
  const List& list = object.list();
  if (name == "count") {
    result = static_cast<int64_t>(std::count(list.begin(), list.end(), read.required(0)));
    return true;
  }
  const auto found = std::find(list.begin(), list.end(), read.required(0));
  if (found == list.end()) at.fail("index: " + read.value(0).repr() + " is not in the list");
  result = static_cast<int64_t>(found - list.begin());
  return true;
}

}  // namespace moebius::data::chat
