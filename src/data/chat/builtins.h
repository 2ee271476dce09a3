// Filters, tests and methods that templates call by name. Unknown names and wrong arguments are a UserError
// with the line.
#pragma once

#include <string>
#include <string_view>

#include "data/chat/syntax.h"
#include "data/chat/value.h"

namespace moebius::data::chat {

Value call_filter(const std::string& name, const Value& value, const Arguments& arguments,
                  const Location& at);
bool call_test(const std::string& name, const Value& value, const Arguments& arguments, const Location& at);
// A method of a string, list or mapping; false when values of that type have no method `name`.
bool call_method(const std::string& name, const Value& object, const Arguments& arguments, const Location& at,
                 Value& result);

// The elements that a loop over the value sees: of a list, the keys of a mapping, the characters of a string,
// none of what is undefined.
List elements_of(const Value& value, const Location& at);
// object.name and object[key]; undefined where there is no such thing.
Value attribute_of(const Value& object, const std::string& name, const Location& at);
Value item_of(const Value& object, const Value& key, const Location& at);
bool contains(const Value& container, const Value& value, const Location& at);
// As Python orders numbers, strings and lists: negative, 0 or positive.
int compare(const Value& a, const Value& b, const Location& at);

// The characters of well-formed UTF-8, one string each.
std::vector<std::string> characters_of(std::string_view text);
std::string replaced(std::string_view text, std::string_view from, std::string_view to, int64_t most);

// Arguments by position or name, with defaults; fails when there are others than `names`.
class ArgumentReader {
 public:
  ArgumentReader(const std::string& what, const Arguments& arguments, std::vector<std::string> names,
                 const Location& at);
  bool has(size_t i) const { return !values_[i].is(Value::Type::kUndefined); }
  const Value& value(size_t i) const { return values_[i]; }
  const Value& required(size_t i) const;
  const std::string& string(size_t i) const;
  int64_t integer(size_t i, int64_t absent) const;
  bool truth(size_t i, bool absent) const { return has(i) ? values_[i].truth() : absent; }

 private:
  const std::string& what_;
  std::vector<std::string> names_;
  std::vector<Value> values_;
  const Location& at_;
};

}  // namespace moebius::data::chat
