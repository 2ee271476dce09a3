#include "data/bpe/regex_syntax.h"

#include <charconv>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"
#include "data/text.h"

namespace moebius::data {
namespace {

using Kind = RegexTree::Kind;
using Mode = RegexProgram::Mode;

constexpr uint32_t kMaxRepeats = 1000, kMaxDepth = 100;

std::optional<uint32_t> category_mask(const std::string& name) {
  static const std::map<std::string, uint32_t> masks = [] {
    std::map<std::string, uint32_t> all = {
        {"L", kLetters}, {"Letter", kLetters}, {"M", kMarks},          {"Mark", kMarks},
        {"N", kNumbers}, {"Number", kNumbers}, {"P", kPunctuation},    {"Punctuation", kPunctuation},
        {"S", kSymbols}, {"Symbol", kSymbols}, {"Z", kSeparators},     {"Separator", kSeparators},
        {"C", kOthers},  {"Other", kOthers},   {"Any", kAllCategories}};
    const char* const names[kNumCategories] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
                                               "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc",
                                               "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};
    for (int i = 0; i < kNumCategories; ++i) all[names[i]] = 1u << i;
    return all;
  }();
  const auto found = masks.find(name);
  if (found == masks.end()) return std::nullopt;
  return found->second;
}

class Parser {
 public:
  Parser(const std::string& pattern, const std::string& where) : text_(pattern), where_(where) {
    if (first_invalid_utf8(text_) < text_.size()) fail("it is not UTF-8");
  }

  RegexTree parse() {
    RegexTree tree = alternatives(0);
    if (at_ < text_.size()) fail("')' without '('");
    return tree;
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_user_error(where_, ": the regular expression '", text_, "' cannot be used: ", concat(parts...),
                     " (at byte ", at_, ")");
  }

  bool more() const { return at_ < text_.size(); }
  char peek() const { return more() ? text_[at_] : '\0'; }
  bool take(std::string_view what) {
    if (!std::string_view(text_).substr(at_).starts_with(what)) return false;
    at_ += what.size();
    return true;
  }
  uint32_t take_character() {
    if (!more()) fail("it ends too early");
    const Decoded c = decode_utf8(text_, at_);
    at_ += c.length;
    return c.code;
  }

  RegexTree alternatives(uint32_t depth) {
    if (depth > kMaxDepth) fail("groups are nested more than ", kMaxDepth, " deep");
    const bool ignore_case = ignore_case_;
    RegexTree all;
    all.kind = Kind::kAlternatives;
    do {
      all.children.push_back(sequence(depth));
    } while (take("|"));
    ignore_case_ = ignore_case;
    if (all.children.size() == 1) return std::move(all.children[0]);
    return all;
  }

  RegexTree sequence(uint32_t depth) {
    RegexTree all;
    while (more() && peek() != '|' && peek() != ')') {
      if (take("(?i)")) {
        ignore_case_ = true;
        continue;
      }
      all.children.push_back(repeated(item(depth)));
    }
    if (all.children.size() == 1) return std::move(all.children[0]);
    return all;
  }

  RegexTree repeated(RegexTree body) {
    for (;;) {
      uint32_t min = 0, max = RegexProgram::kUnbounded;
      bool braces = false;
      if (take("?")) {
        max = 1;
      } else if (take("+")) {
        min = 1;
      } else if (peek() == '{' && bounds(min, max)) {
        braces = true;
      } else if (!take("*")) {
        return body;
      }
      RegexTree repeat;
      repeat.kind = Kind::kRepeat;
      repeat.min = min;
      repeat.max = max;
      if (take("?")) {
        repeat.mode = Mode::kLazy;
      } else if (!braces && take("+")) {  // after braces + repeats the repetition, in Ruby's syntax
        repeat.mode = Mode::kPossessive;
      }
      if (braces && peek() == '+') fail("a repetition of a repetition is not supported");
      repeat.children.push_back(std::move(body));
      body = std::move(repeat);
    }
  }

  // {n} {n,} {n,m} {,m}; anything else in braces is text.
  bool bounds(uint32_t& min, uint32_t& max) {
    const size_t close = text_.find('}', at_);
    if (close == std::string::npos) return false;
    const char* const begin = text_.data() + at_ + 1;
    const char* const end = text_.data() + close;
    const auto [after_min, min_error] = std::from_chars(begin, end, min);
    const bool has_min = min_error == std::errc();
    const char* p = has_min ? after_min : begin;
    if (!has_min) min = 0;
    if (p == end && has_min) {
      max = min;
    } else if (p < end && *p == ',') {
      const auto [after_max, max_error] = std::from_chars(++p, end, max);
      if (max_error != std::errc()) max = RegexProgram::kUnbounded;
      if ((max_error == std::errc() ? after_max : p) != end) return false;
      if (!has_min && max == RegexProgram::kUnbounded) return false;
    } else {
      return false;
    }
    if (min > kMaxRepeats || (max != RegexProgram::kUnbounded && max > kMaxRepeats))
      fail("more than ", kMaxRepeats, " repetitions");
    if (max < min) fail("{", min, ",", max, "} has its bounds in the wrong order");
    at_ = close + 1;
    return true;
  }

  RegexTree item(uint32_t depth) {
    if (take("(")) return group(depth);
    if (take("[")) return set_tree(char_class(depth));
    if (take(".")) return set_tree(CharSet::of_range('\n', '\n').negated());
    if (take("^")) return anchor(RegexProgram::Kind::kLineBegin);
    if (take("$")) return anchor(RegexProgram::Kind::kLineEnd);
    if (take("\\A")) return anchor(RegexProgram::Kind::kTextBegin);
    if (take("\\z")) return anchor(RegexProgram::Kind::kTextEnd);
    if (peek() == '*' || peek() == '+' || peek() == '?') fail("'", peek(), "' has nothing to repeat");
    if (take("\\")) return set_tree(escape());
    return set_tree(character(take_character()));
  }

  RegexTree group(uint32_t depth) {
    RegexTree tree;
    const bool ignore_case = ignore_case_;
    std::optional<Kind> wrap;
    if (take("?:")) {
    } else if (take("?i:")) {
      ignore_case_ = true;
    } else if (take("?-i:")) {
      ignore_case_ = false;
    } else if (take("?=") || take("?!")) {
      wrap = Kind::kLookAhead;
      tree.negative = text_[at_ - 1] == '!';
    } else if (take("?<=") || take("?<!")) {
      wrap = Kind::kLookBehind;
      tree.negative = text_[at_ - 1] == '!';
    } else if (take("?>")) {
      wrap = Kind::kAtomic;
    } else if (peek() == '?') {
      fail("the group '(", text_.substr(at_, 3), "' is not supported");
    }
    RegexTree inner = alternatives(depth + 1);
    ignore_case_ = ignore_case;
    if (!take(")")) fail("'(' without ')'");
    if (!wrap) return inner;
    tree.kind = *wrap;
    if (tree.kind == Kind::kLookBehind) {
      if (inner.kind != Kind::kSet) fail("look-behind is supported for a single character only");
      tree.set = inner.set;
    } else {
      tree.children.push_back(std::move(inner));
    }
    return tree;
  }

  static RegexTree anchor(RegexProgram::Kind kind) {
    RegexTree tree;
    tree.kind = Kind::kAnchor;
    tree.anchor = kind;
    return tree;
  }
  static RegexTree set_tree(CharSet set) {
    RegexTree tree;
    tree.kind = Kind::kSet;
    tree.set = std::move(set);
    return tree;
  }

  CharSet character(uint32_t code) { return range(code, code); }

  CharSet range(uint32_t first, uint32_t last) {
    CharSet set = CharSet::of_range(first, last);
    if (!ignore_case_) return set;
    if (last > 127 && (category_bit(last) & kLetters))
      fail("letters beyond ASCII under (?i) are not supported");
    for (uint32_t code = first; code <= last && code < 128; ++code) {
      const uint32_t lower = code | 32;
      if (lower < 'a' || lower > 'z') continue;
      set.add(CharSet::of_range(lower, lower));
      set.add(CharSet::of_range(lower - 32, lower - 32));
      if (lower == 's') set.add(CharSet::of_range(0x17F, 0x17F));    // long s
      if (lower == 'k') set.add(CharSet::of_range(0x212A, 0x212A));  // Kelvin
    }
    return set;
  }

  // What follows a backslash, inside a class or outside.
  CharSet escape() {
    switch (peek()) {
      case 's':
        return ++at_, CharSet::white_space();
      case 'S':
        return ++at_, CharSet::white_space().negated();
      case 'd':
        return ++at_, CharSet::digits();
      case 'D':
        return ++at_, CharSet::digits().negated();
      case 'w':
        return ++at_, CharSet::word();
      case 'W':
        return ++at_, CharSet::word().negated();
      case 'p':
      case 'P':
        return property();
      default:
        return character(escaped_character());
    }
  }

  uint32_t escaped_character() {
    const uint32_t c = take_character();
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case '0':
        return 0;
      case 'x':
        return take("{") ? hex(text_.find('}', at_) - at_, true) : hex(2, false);
      case 'u':
        return hex(4, false);
      default:
        if (c < 128 && ((c | 32) >= 'a' && (c | 32) <= 'z'))
          fail("'\\", static_cast<char>(c), "' is not supported");
        if (c >= '1' && c <= '9') fail("back-references are not supported");
        return c;
    }
  }

  uint32_t hex(size_t digits, bool braces) {
    uint32_t code = 0;
    const size_t available = text_.size() - at_;
    if (digits == 0 || digits > std::min<size_t>(available, 8)) fail("a hexadecimal escape is cut");
    const char* const begin = text_.data() + at_;
    const auto [end, error] = std::from_chars(begin, begin + digits, code, 16);
    if (error != std::errc() || end != begin + digits || code > 0x10FFFF)
      fail("a hexadecimal escape is wrong");
    at_ += digits + (braces ? 1 : 0);
    return code;
  }

  CharSet property() {
    bool negative = take_character() == 'P';
    if (!take("{")) fail("\\p needs a name in braces");
    if (take("^")) negative = !negative;
    const size_t close = text_.find('}', at_);
    if (close == std::string::npos) fail("\\p{ without }");
    const std::string name = text_.substr(at_, close - at_);
    const auto mask = category_mask(name);
    if (!mask) fail("the property \\p{", name, "} is not known; general categories such as L, Lu or Nd are");
    at_ = close + 1;
    return CharSet::of_categories(negative ? kAllCategories & ~*mask : *mask);
  }

  // After '['.
  CharSet char_class(uint32_t depth) {
    if (depth > kMaxDepth) fail("classes are nested more than ", kMaxDepth, " deep");
    const bool negative = take("^");
    CharSet set;
    bool empty = true;
    while (!(peek() == ']' && !empty)) {
      if (!more()) fail("'[' without ']'");
      if (take("&&")) fail("&& in a class is not supported");
      if (take("[:")) fail("[:name:] in a class is not supported");
      empty = false;
      if (take("[")) {
        set.add(char_class(depth + 1));
        continue;
      }
      const size_t start = at_;
      uint32_t first;
      if (take("\\")) {
        const char kind = peek();
        if (std::string_view("sSdDwWpP").find(kind) != std::string_view::npos) {
          set.add(escape());
          continue;
        }
        first = kind == 'b' ? (++at_, '\b') : escaped_character();
      } else {
        first = take_character();
      }
      uint32_t last = first;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        if (take("[")) fail("a range that ends with a class");
        last = take("\\") ? escaped_character() : take_character();
        if (last < first) {
          fail("the range '", text_.substr(start, at_ - start), "' has its ends in the wrong order");
        }
      }
      set.add(range(first, last));
    }
    ++at_;
    return negative ? set.negated() : set;
  }

  const std::string& text_;
  const std::string& where_;
  size_t at_ = 0;
  bool ignore_case_ = false;
};

}  // namespace

RegexTree parse_regex(const std::string& pattern, const std::string& where) {
  return Parser(pattern, where).parse();
}

}  // namespace moebius::data
