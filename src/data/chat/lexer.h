// Cuts a template into text and tags, and tags into words.
#pragma once

#include <string>
#include <vector>

namespace moebius::data::chat {

struct Token {
  enum class Kind { kName, kInteger, kReal, kString, kOperator, kEnd };
  Kind kind = Kind::kEnd;
  std::string text;  // of strings: without quotes, escapes resolved
  int line = 1;
};

// A stretch of text, {{ … }} or {% … %}.
struct Segment {
  enum class Kind { kText, kOutput, kStatement };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;           // kText, white space control applied
  std::vector<Token> tokens;  // else, with a kEnd at the end
};

// UserError that begins with `where` for what is not a template.
std::vector<Segment> cut_template(const std::string& source, const std::string& where);

}  // namespace moebius::data::chat
