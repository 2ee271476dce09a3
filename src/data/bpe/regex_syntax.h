// Patterns as trees; only the regular expressions' own files include this.
#pragma once

#include <string>
#include <vector>

#include "data/bpe/regex_program.h"
#include "data/bpe/unicode.h"

namespace moebius::data {

struct RegexTree {
  enum class Kind { kSet, kSequence, kAlternatives, kRepeat, kLookAhead, kLookBehind, kAtomic, kAnchor };

  Kind kind = Kind::kSequence;
  CharSet set;                      // kSet, kLookBehind
  std::vector<RegexTree> children;  // one for kRepeat, kLookAhead and kAtomic
  uint32_t min = 1, max = 1;        // kRepeat
  RegexProgram::Mode mode = RegexProgram::Mode::kGreedy;
  bool negative = false;  // looks
  RegexProgram::Kind anchor = RegexProgram::Kind::kAccept;
};

// Throws UserError that begins with `where`.
RegexTree parse_regex(const std::string& pattern, const std::string& where);

}  // namespace moebius::data
