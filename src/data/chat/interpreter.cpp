#include "data/chat/interpreter.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "data/chat/builtins.h"

namespace moebius::data::chat {
namespace {

using Type = Value::Type;

constexpr int kMaxCalls = 100;                 // macros inside macros
constexpr int64_t kMaxRange = 100'000;         // as Jinja's sandbox has it
constexpr size_t kMaxText = size_t{64} << 20;  // of one value or of the output

enum class Flow { kOn, kBreak, kContinue };

using Frame = std::map<std::string, Value, std::less<>>;

class Interpreter {
 public:
  Interpreter(const std::string& where, const Value& variables, std::time_t now) : where_(where), now_(now) {
    frames_.emplace_back();
    add_functions();
    for (const auto& [name, value] : variables.dict()) frames_[0][name] = value;
  }

  std::string run(const Block& block) {
    std::string out;
    execute(block, out);
    return out;
  }

 private:
  Location at(int line) const { return {&where_, line}; }

  // --- statements

  Flow execute(const Block& block, std::string& out) {
    for (const Statement& statement : block) {
      const Flow flow = execute(statement, out);
      if (out.size() > kMaxText) at(statement.line).fail("the template writes more than 64 MiB");
      if (flow != Flow::kOn) return flow;
    }
    return Flow::kOn;
  }

  Flow execute(const Statement& statement, std::string& out) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        out += statement.text;
        break;
      case Statement::Kind::kOutput:
        out += evaluate(*statement.expressions[0]).text();
        break;
      case Statement::Kind::kIf: {
        size_t branch = 0;
        while (branch < statement.expressions.size() && !evaluate(*statement.expressions[branch]).truth())
          ++branch;
        if (branch < statement.blocks.size()) return execute(statement.blocks[branch], out);
        break;
      }
      case Statement::Kind::kFor:
        loop(statement, out);
        break;
      case Statement::Kind::kSet:
        set(statement, evaluate(*statement.expressions[0]));
        break;
      case Statement::Kind::kSetBlock: {
        std::string text;
        execute(statement.blocks[0], text);
        set(statement, std::move(text));
        break;
      }
      case Statement::Kind::kMacro:
        define(statement);
        break;
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
      case Statement::Kind::kBlock:
        return execute(statement.blocks[0], out);
    }
    return Flow::kOn;
  }

  void loop(const Statement& statement, std::string& out) {
    const Location here = at(statement.line);
    List all = elements_of(evaluate(*statement.expressions[0]), here);
    if (statement.expressions[1]) {
      List kept;
      for (const Value& element : all) {
        frames_.emplace_back();
        assign(statement.targets, element, here);
        if (evaluate(*statement.expressions[1]).truth()) kept.push_back(element);
        frames_.pop_back();
      }
      all = std::move(kept);
    }
    if (all.empty() && statement.blocks.size() > 1) execute(statement.blocks[1], out);
    const auto size = static_cast<int64_t>(all.size());
    for (int64_t i = 0; i < size; ++i) {
      frames_.emplace_back();
      Dict loop{{"index", i + 1}, {"index0", i},          {"first", i == 0},          {"last", i + 1 == size},
                {"length", size}, {"revindex", size - i}, {"revindex0", size - i - 1}};
      if (i > 0) loop.emplace_back("previtem", all[static_cast<size_t>(i) - 1]);
      if (i + 1 < size) loop.emplace_back("nextitem", all[static_cast<size_t>(i) + 1]);
      loop.emplace_back("cycle", Function([i, here](const Arguments& arguments) {
                          if (arguments.positional.empty()) here.fail("cycle needs values");
                          return arguments.positional[static_cast<size_t>(i) % arguments.positional.size()];
                        }));
      frames_.back()["loop"] = std::move(loop);
      assign(statement.targets, all[static_cast<size_t>(i)], here);
      const Flow flow = execute(statement.blocks[0], out);
      frames_.pop_back();
      if (flow == Flow::kBreak) break;
    }
  }

  void assign(const std::vector<std::string>& targets, const Value& value, const Location& here) {
    if (targets.size() == 1) {
      assign(targets[0], value, here);
      return;
    }
    const List parts = elements_of(value, here);
    if (parts.size() != targets.size())
      here.fail(concat("there are ", parts.size(), " values for ", targets.size(), " names"));
    for (size_t i = 0; i < parts.size(); ++i) assign(targets[i], parts[i], here);
  }

  void assign(const std::string& target, const Value& value, const Location& here) {
    const size_t dot = target.find('.');
    if (dot == std::string::npos) {
      frames_.back()[target] = value;
      return;
    }
    Value object = lookup(target.substr(0, dot));
    if (!object.is(Type::kDict))
      here.fail("'" + target.substr(0, dot) + "' is no namespace but " + object.kind());
    const std::string name = target.substr(dot + 1);
    Dict& members = object.mutable_dict();
    const auto found =
        std::find_if(members.begin(), members.end(), [&](const auto& each) { return each.first == name; });
    if (found == members.end()) {
      members.emplace_back(name, value);
    } else {
      found->second = value;
    }
  }

  void set(const Statement& statement, const Value& value) {
    assign(statement.targets, value, at(statement.line));
  }

  void define(const Statement& macro) {
    frames_.back()[macro.text] = Function([this, &macro](const Arguments& arguments) -> Value {
      const Location here = at(macro.line);
      if (++calls_ > kMaxCalls) here.fail("macros call each other more than 100 deep");
      Frame frame;
      if (arguments.positional.size() > macro.parameters.size())
        here.fail(concat("macro ", macro.text, " takes ", macro.parameters.size(), " arguments, not ",
                         arguments.positional.size()));
      // A macro sees the template's own variables, not those of the place that calls it.
      std::vector<Frame> outer;
      outer.swap(frames_);
      frames_.push_back(std::move(outer[0]));
      for (size_t i = 0; i < macro.parameters.size(); ++i) {
        const Parameter& parameter = macro.parameters[i];
        const auto named = std::find_if(arguments.named.begin(), arguments.named.end(),
                                        [&](const auto& each) { return each.first == parameter.name; });
        frame[parameter.name] = i < arguments.positional.size()  ? arguments.positional[i]
                                : named != arguments.named.end() ? named->second
                                : parameter.value                ? evaluate(*parameter.value)
                                                  : Value::undefined("'" + parameter.name + "'");
      }
      frames_.push_back(std::move(frame));
      std::string text;
      execute(macro.blocks[0], text);
      outer[0] = std::move(frames_[0]);
      frames_.swap(outer);
      --calls_;
      return text;
    });
  }

  // --- expressions

  Value lookup(const std::string& name) const {
    for (size_t i = frames_.size(); i-- > 0;)
      if (const auto found = frames_[i].find(name); found != frames_[i].end()) return found->second;
    return Value::undefined("'" + name + "'");
  }

  Value evaluate(const Expression& e) {
    const auto operand = [&](size_t i) { return evaluate(*e.operands[i]); };
    switch (e.kind) {
      case Expression::Kind::kConstant:
        return e.value;
      case Expression::Kind::kName:
        return lookup(e.name);
      case Expression::Kind::kList:
      case Expression::Kind::kTuple: {
        List list;
        for (const auto& each : e.operands) list.push_back(evaluate(*each));
        return e.kind == Expression::Kind::kTuple ? Value::tuple(std::move(list)) : Value(std::move(list));
      }
      case Expression::Kind::kDict: {
        Dict dict;
        for (size_t i = 0; i < e.operands.size(); i += 2) {
          const Value key = operand(i);
          if (!key.is(Type::kString)) at(e.line).fail("a key is " + key.kind() + ", expected a string");
          dict.emplace_back(key.string(), operand(i + 1));
        }
        return dict;
      }
      case Expression::Kind::kAttribute:
        return attribute_of(operand(0), e.name, at(e.line));
      case Expression::Kind::kItem:
        return item_of(operand(0), operand(1), at(e.line));
      case Expression::Kind::kSlice:
        return slice(e);
      case Expression::Kind::kCall:
        return call(e);
      case Expression::Kind::kFilter:
        return call_filter(e.name, operand(0), arguments(e), at(e.line));
      case Expression::Kind::kTest:
        return call_test(e.name, operand(0), arguments(e), at(e.line)) != e.negative;
      case Expression::Kind::kUnary: {
        const Value value = operand(0);
        if (e.name == "not") return !value.truth();
        if (!value.is_number()) at(e.line).fail("'" + e.name + "' of " + value.kind());
        if (e.name == "+") return value;
        return value.is_whole() ? Value(-value.integer()) : Value(-value.real());
      }
      case Expression::Kind::kBinary:
        return binary(e);
      case Expression::Kind::kCondition:
        if (operand(0).truth()) return operand(1);
        return e.operands[2] ? operand(2) : Value();
    }
    return {};
  }

  Arguments arguments(const Expression& e) {
    Arguments all;
    for (size_t i = 1; i < e.operands.size(); ++i) all.positional.push_back(evaluate(*e.operands[i]));
    for (const auto& [name, value] : e.named) all.named.emplace_back(name, evaluate(*value));
    return all;
  }

  Value call(const Expression& e) {
    const Expression& callee = *e.operands[0];
    const Location here = at(e.line);
    Value function;
    std::string name = callee.name;
    if (callee.kind == Expression::Kind::kAttribute) {
      const Value object = evaluate(*callee.operands[0]);
      if (object.is(Type::kUndefined)) here.fail("." + callee.name + "() of " + object.kind());
      const Arguments given = arguments(e);
      Value result;
      if (call_method(callee.name, object, given, here, result)) return result;
      function = attribute_of(object, callee.name, here);
      if (!function.is(Type::kFunction)) here.fail(object.kind() + " has no method '" + callee.name + "'");
      line_ = e.line;
      return function.function()(given);
    } else {
      function = evaluate(callee);
      if (function.is(Type::kUndefined) && !name.empty())
        here.fail("there is no function or macro '" + name + "'");
      if (!function.is(Type::kFunction)) here.fail("a call of " + function.kind());
    }
    line_ = e.line;
    return function.function()(arguments(e));
  }

  Value slice(const Expression& e) {
    const Location here = at(e.line);
    const Value object = evaluate(*e.operands[0]);
    if (!object.is(Type::kList) && !object.is(Type::kString)) here.fail("a slice of " + object.kind());
    const List all = elements_of(object, here);
    const auto size = static_cast<int64_t>(all.size());
    const auto bound = [&](size_t i, int64_t absent) {
      if (!e.operands[i]) return absent;
      const Value value = evaluate(*e.operands[i]);
      if (value.is(Type::kNone)) return absent;
      if (!value.is_whole()) here.fail("a slice bound is " + value.kind());
      return value.integer();
    };
    const int64_t step = bound(3, 1);
    if (step == 0) here.fail("a slice with step 0");
    const auto clamp = [&](int64_t value) {
      if (value < 0) value += size;
      return step > 0 ? std::clamp<int64_t>(value, 0, size) : std::clamp<int64_t>(value, -1, size - 1);
    };
    const int64_t kAbsent = INT64_MIN;
    const int64_t first = bound(1, kAbsent), last = bound(2, kAbsent);
    const int64_t begin = first == kAbsent ? (step > 0 ? 0 : size - 1) : clamp(first);
    const int64_t end = last == kAbsent ? (step > 0 ? size : -1) : clamp(last);
    List part;
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step)
      part.push_back(all[static_cast<size_t>(i)]);
    if (object.is(Type::kList)) return part;
    std::string text;
    for (const Value& character : part) text += character.string();
    return text;
  }

  Value binary(const Expression& e) {
    const Location here = at(e.line);
    const std::string& op = e.name;
    Value left = evaluate(*e.operands[0]);
    if (op == "and") return left.truth() ? evaluate(*e.operands[1]) : left;
    if (op == "or") return left.truth() ? left : evaluate(*e.operands[1]);
    const Value right = evaluate(*e.operands[1]);
    if (op == "==") return left == right;
    if (op == "!=") return !(left == right);
    if (op == "<") return compare(left, right, here) < 0;
    if (op == ">") return compare(left, right, here) > 0;
    if (op == "<=") return compare(left, right, here) <= 0;
    if (op == ">=") return compare(left, right, here) >= 0;
    if (op == "in") return contains(right, left, here);
    if (op == "not in") return !contains(right, left, here);
    if (op == "~") return left.text() + right.text();
    return arithmetic(op, left, right, here);
  }

  static Value arithmetic(const std::string& op, const Value& left, const Value& right,
                          const Location& here) {
    if (op == "+" && left.is(Type::kString) && right.is(Type::kString)) {
      if (left.string().size() + right.string().size() > kMaxText) here.fail("a text of more than 64 MiB");
      return left.string() + right.string();
    }
    if (op == "+" && left.is(Type::kList) && right.is(Type::kList)) {
      List all = left.list();
      all.insert(all.end(), right.list().begin(), right.list().end());
      return all;
    }
    if (op == "*" && left.is(Type::kString) && right.is_whole()) {
      const auto count = static_cast<size_t>(std::max<int64_t>(right.integer(), 0));
      if (count > 0 && left.string().size() > kMaxText / count) here.fail("a text of more than 64 MiB");
      std::string text;
      for (size_t i = 0; i < count; ++i) text += left.string();
      return text;
    }
    if (!left.is_number() || !right.is_number())
      here.fail("'" + op + "' of " + left.kind() + " and " + right.kind());
    if (left.is_whole() && right.is_whole() && op != "/" && op != "**")
      return whole(op, left.integer(), right.integer(), here);
    const double a = left.real(), b = right.real();
    if (op == "+") return a + b;
    if (op == "-") return a - b;
    if (op == "*") return a * b;
    if (op == "**") {
      const double power = std::pow(a, b);
      const bool exact = left.is_whole() && right.is_whole() && b >= 0 && std::fabs(power) < 9e15;
      return exact ? Value(static_cast<int64_t>(power)) : Value(power);
    }
    if (b == 0) here.fail("a division by zero");
    if (op == "/") return a / b;
    if (op == "//") return std::floor(a / b);
    return a - std::floor(a / b) * b;
  }

  static Value whole(const std::string& op, int64_t a, int64_t b, const Location& here) {
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") {
      overflow = __builtin_add_overflow(a, b, &result);
    } else if (op == "-") {
      overflow = __builtin_sub_overflow(a, b, &result);
    } else if (op == "*") {
      overflow = __builtin_mul_overflow(a, b, &result);
    } else {
      if (b == 0) here.fail("a division by zero");
      if (b == -1) {
        overflow = op == "//" && a == INT64_MIN;
        result = op == "//" && !overflow ? -a : 0;
      } else {
        const int64_t remainder = ((a % b) + b) % b;  // of the sign of b, as in Python
        result = op == "%" ? remainder : (a - remainder) / b;
      }
    }
    if (overflow) here.fail("a number that is too large");
    return result;
  }

  // --- functions

  void add_functions() {
    Frame& globals = frames_[0];
    globals["raise_exception"] = Function([this](const Arguments& arguments) -> Value {
      const Location here = at(line_);
      here.fail("the template refuses this conversation: " +
                ArgumentReader("raise_exception", arguments, {"message"}, here).value(0).text());
    });
    globals["strftime_now"] = Function([this](const Arguments& arguments) -> Value {
      const Location here = at(line_);
      const std::string format = ArgumentReader("strftime_now", arguments, {"format"}, here).string(0);
      std::tm parts{};
      localtime_r(&now_, &parts);
      char text[256];
      const size_t length = std::strftime(text, sizeof(text), format.c_str(), &parts);
      return std::string(text, length);
    });
    globals["namespace"] = Function([this](const Arguments& arguments) -> Value {
      Dict members;
      for (const Value& each : arguments.positional) {
        if (!each.is(Type::kDict)) at(line_).fail("namespace of " + each.kind());
        members.insert(members.end(), each.dict().begin(), each.dict().end());
      }
      members.insert(members.end(), arguments.named.begin(), arguments.named.end());
      return members;
    });
    globals["dict"] = globals["namespace"];
    globals["range"] = Function([this](const Arguments& arguments) -> Value {
      const Location here = at(line_);
      const ArgumentReader read("range", arguments, {"start", "stop", "step"}, here);
      read.required(0);
      const int64_t begin = read.has(1) ? read.integer(0, 0) : 0;
      const int64_t end = read.has(1) ? read.integer(1, 0) : read.integer(0, 0);
      const int64_t step = read.integer(2, 1);
      if (step == 0) here.fail("range with step 0");
      List all;
      for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
        if (static_cast<int64_t>(all.size()) == kMaxRange)
          here.fail(concat("a range of more than ", kMaxRange, " numbers"));
        all.emplace_back(i);
      }
      return all;
    });
  }

  const std::string& where_;
  std::time_t now_;
  std::vector<Frame> frames_;
  int calls_ = 0;
  int line_ = 1;  // of the last call
};

}  // namespace

std::string run_template(const Block& block, const std::string& where, const Value& variables,
                         std::time_t now) {
  return Interpreter(where, variables, now).run(block);
}

}  // namespace moebius::data::chat
