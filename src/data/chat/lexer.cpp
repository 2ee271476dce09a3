#include "data/chat/lexer.h"

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "data/bpe/unicode.h"
#include "data/chat/syntax.h"

namespace moebius::data::chat {
namespace {

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name(char c) {
  return c == '_' || is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Cutter {
 public:
  Cutter(const std::string& source, const std::string& where) : where_(where) {
    // One kind of line end, and without the last one, as Jinja reads a file.
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        source_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Segment> run() {
    while (at_ < source_.size()) {
      size_t begin = at_;
      while ((begin = source_.find('{', begin)) != std::string::npos) {
        const char next = begin + 1 < source_.size() ? source_[begin + 1] : '\0';
        if (next == '{' || next == '%' || next == '#') break;
        ++begin;
      }
      const bool tag = begin != std::string::npos;
      text(at_, tag ? begin : source_.size(), tag);
      if (!tag) break;
      read_tag(begin);
    }
    return std::move(segments_);
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const { Location{&where_, line_}.fail(reason); }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  // The text before a tag, without the white space that the tag takes away.
  void text(size_t begin, size_t end, bool before_tag) {
    std::string_view part = std::string_view(source_).substr(begin, end - begin);
    if (before_tag) {
      const char kind = source_[end + 1], sign = end + 2 < source_.size() ? source_[end + 2] : '\0';
      if (sign == '-') {
        while (!part.empty() && is_space(part.back())) part.remove_suffix(1);
      } else if (sign != '+' && kind != '{') {
        const size_t line = part.rfind('\n') + 1;  // 0 where there is none
        const auto rest = part.substr(line);
        if ((line > 0 || line_start_) && std::all_of(rest.begin(), rest.end(), is_space))
          part = part.substr(0, line);
      }
    }
    if (!part.empty()) {
      Segment segment;
      segment.line = line_;
      segment.text = part;
      segments_.push_back(std::move(segment));
    }
    advance(end);
  }

  void read_tag(size_t begin) {
    const char kind = source_[begin + 1];
    if (kind == '#') {
      const size_t end = source_.find("#}", begin + 2);
      if (end == std::string::npos) fail("a comment {# does not end with #}");
      const bool strips = end > begin + 2 && source_[end - 1] == '-';
      advance(end + 2);
      return after_tag(strips, end > begin + 2 && source_[end - 1] == '+', true);
    }
    Segment segment;
    segment.kind = kind == '{' ? Segment::Kind::kOutput : Segment::Kind::kStatement;
    segment.line = line_;
    const std::string_view close = kind == '{' ? "}}" : "%}";
    advance(begin + 2);
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) advance(at_ + 1);
    int braces = 0;  // of dicts: }} inside them ends no tag
    for (;;) {
      while (at_ < source_.size() && is_space(source_[at_])) advance(at_ + 1);
      if (at_ >= source_.size()) {
        line_ = segment.line;
        fail(concat("a tag ", kind == '{' ? "{{" : "{%", " does not end with ", close));
      }
      const std::string_view rest = std::string_view(source_).substr(at_);
      const bool strips = rest[0] == '-' && rest.substr(1).starts_with(close);
      const bool keeps = rest[0] == '+' && rest.substr(1).starts_with(close);
      if (braces == 0 && (strips || keeps || rest.starts_with(close))) {
        Token end;
        end.line = line_;
        segment.tokens.push_back(end);
        segments_.push_back(std::move(segment));
        advance(at_ + close.size() + (strips || keeps));
        return after_tag(strips, keeps, kind == '%');
      }
      if (rest[0] == '{') ++braces;
      if (rest[0] == '}') --braces;
      segment.tokens.push_back(read_token());
    }
  }

  void after_tag(bool strips, bool keeps, bool is_block) {
    line_start_ = false;
    if (strips) {
      size_t end = at_;
      while (end < source_.size() && is_space(source_[end])) ++end;
      line_start_ = end > at_ && source_[end - 1] == '\n';
      advance(end);
    } else if (is_block && !keeps && at_ < source_.size() && source_[at_] == '\n') {
      advance(at_ + 1);
      line_start_ = true;
    }
  }

  Token read_token() {
    Token token;
    token.line = line_;
    const char c = source_[at_];
    size_t end = at_;
    if (c == '"' || c == '\'') {
      token.kind = Token::Kind::kString;
      token.text = read_string(c);
      return token;
    }
    if (is_digit(c)) {
      token.kind = Token::Kind::kInteger;
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
      if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
        token.kind = Token::Kind::kReal;
        ++end;
        while (end < source_.size() && is_digit(source_[end])) ++end;
      }
    } else if (is_name(c)) {
      token.kind = Token::Kind::kName;
      while (end < source_.size() && is_name(source_[end])) ++end;
    } else {
      token.kind = Token::Kind::kOperator;
      const std::string_view rest = std::string_view(source_).substr(at_);
      for (const char* two : {"==", "!=", "<=", ">=", "//", "**"})
        if (rest.starts_with(two)) end = at_ + 2;
      if (end == at_ && std::string_view("+-*/%~|.,:()[]{}=<>").find(c) != std::string_view::npos)
        end = at_ + 1;
      if (end == at_)
        fail(concat("'", source_.substr(at_, decode_utf8(source_, at_).length), "' is not expected here"));
    }
    token.text = source_.substr(at_, end - at_);
    if (token.kind != Token::Kind::kOperator)
      std::erase_if(token.text, [&](char each) { return each == '_' && token.kind != Token::Kind::kName; });
    advance(end);
    return token;
  }

  std::string read_string(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 >= source_.size()) {
        text += source_[i];
        continue;
      }
      switch (const char c = source_[++i]) {
        case 'n':
          text += '\n';
          break;
        case 't':
          text += '\t';
          break;
        case 'r':
          text += '\r';
          break;
        case 'b':
          text += '\b';
          break;
        case 'f':
          text += '\f';
          break;
        case 'v':
          text += '\v';
          break;
        case '0':
          text += '\0';
          break;
        case '\\':
        case '\'':
        case '"':
          text += c;
          break;
        case '\n':
          break;  // a line that goes on
        case 'x':
        case 'u': {
          const size_t digits = c == 'x' ? 2 : 4;
          uint32_t code = 0;
          for (size_t k = 1; k <= digits; ++k) {
            const char d = i + k < source_.size() ? source_[i + k] : '\0';
            const int value = is_digit(d)                          ? d - '0'
                              : (d | 32) >= 'a' && (d | 32) <= 'f' ? (d | 32) - 'a' + 10
                                                                   : -1;
            if (value < 0) fail("an escape in a string is cut");
            code = code * 16 + static_cast<uint32_t>(value);
          }
          append_utf8(code, text);
          i += digits;
          break;
        }
        default:
          (text += '\\') += c;
      }
    }
    if (i >= source_.size()) fail("a string does not end");
    advance(i + 1);
    return text;
  }

  const std::string& where_;
  std::string source_;
  std::vector<Segment> segments_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // nothing but white space may stand between here and the last line end
};

}  // namespace

std::vector<Segment> cut_template(const std::string& source, const std::string& where) {
  return Cutter(source, where).run();
}

}  // namespace moebius::data::chat
