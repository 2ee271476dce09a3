// Values of chat templates, with the meaning that Python gives them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius::data::chat {

class Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in order of insertion

struct Arguments {
  List positional;
  Dict named;
};
using Function = std::function<Value(const Arguments&)>;

class Value {
 public:
  enum class Type { kUndefined, kNone, kBoolean, kInteger, kReal, kString, kList, kDict, kFunction };

  Value() = default;  // undefined
  static Value none();
  Value(bool value) : type_(Type::kBoolean), integer_(value) {}     // NOLINT: implicit on purpose
  Value(int64_t value) : type_(Type::kInteger), integer_(value) {}  // NOLINT
  Value(double value) : type_(Type::kReal), real_(value) {}         // NOLINT
  Value(std::string value) : type_(Type::kString), string_(std::move(value)) {}  // NOLINT
  Value(const char* value) : Value(std::string(value)) {}                        // NOLINT
  Value(List value);                                                             // NOLINT
  Value(Dict value);                                                             // NOLINT
  Value(Function value);                                                         // NOLINT
  static Value tuple(List values);  // a list that is written with round brackets
  static Value of_json(const nlohmann::ordered_json& json);
  // What is asked for but not there; `what` ("'tools'") goes into messages.
  static Value undefined(std::string what);

  Type type() const { return type_; }
  bool is(Type type) const { return type_ == type; }
  bool is_number() const {
    return type_ == Type::kBoolean || type_ == Type::kInteger || type_ == Type::kReal;
  }
  bool is_whole() const { return type_ == Type::kBoolean || type_ == Type::kInteger; }
  // "undefined", "none", "a string", …
  std::string kind() const;

  // Each for values of that type only.
  const std::string& string() const { return string_; }  // also: what an undefined value was asked for as
  int64_t integer() const { return integer_; }           // booleans too
  double real() const { return type_ == Type::kReal ? real_ : static_cast<double>(integer_); }
  const List& list() const { return *list_; }
  const Dict& dict() const { return *dict_; }
  Dict& mutable_dict() { return *dict_; }  // shared by all copies of the value, as in Python
  const Function& function() const { return *function_; }

  bool truth() const;
  // The member of a dict, or null.
  const Value* find(std::string_view key) const;
  // str() and repr() of Python.
  std::string text() const;
  std::string repr() const;
  // json.dumps(value, ensure_ascii=False); indent < 0: on one line.
  std::string json(int indent) const;

  bool operator==(const Value& other) const;

 private:
  void append_json(int indent, int depth, std::string& out) const;

  Type type_ = Type::kUndefined;
  int64_t integer_ = 0;
  double real_ = 0;
  bool tuple_ = false;
  std::string string_;
  std::shared_ptr<List> list_;
  std::shared_ptr<Dict> dict_;
  std::shared_ptr<Function> function_;
};

}  // namespace moebius::data::chat
