#include "data/bpe/regex.h"

#include "data/bpe/regex_program.h"

namespace moebius::data {

using Kind = RegexProgram::Kind;
using Mode = RegexProgram::Mode;

Regex::Regex(const std::string& pattern, const std::string& where)
    : pattern_(pattern), program_(std::make_unique<const RegexProgram>(pattern, where)) {}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

RegexSearch::RegexSearch(const Regex& regex, std::string_view text)
    : program_(*regex.program_), text_(text), failed_(program_.size()) {}

size_t RegexSearch::match_at(size_t at) {
  return match(program_.start(), at);
}

std::pair<size_t, size_t> RegexSearch::find(size_t from) {
  const FirstCharacters& first = program_.node(program_.start()).first;
  for (size_t at = from;;) {
    if (at >= text_.size() || first.empty || first.admits(static_cast<unsigned char>(text_[at]))) {
      const size_t end = match_at(at);
      if (end != kNone) return {at, end};
    }
    if (at >= text_.size()) return {kNone, kNone};
    at += decode_utf8(text_, at).length;
  }
}

std::vector<std::pair<size_t, size_t>> RegexSearch::find_all() {
  std::vector<std::pair<size_t, size_t>> matches;
  size_t from = 0, last_end = kNone;
  while (from <= text_.size()) {
    const auto [begin, end] = find(from);
    if (begin == kNone) break;
    if (begin == end && end == last_end) {
      if (end >= text_.size()) break;
      from = end + decode_utf8(text_, end).length;
      continue;
    }
    matches.emplace_back(begin, end);
    from = last_end = end;
  }
  return matches;
}

size_t RegexSearch::match_run(int32_t index, size_t at) {
  const RegexProgram::Node& node = program_.node(index);
  Failed& failed = failed_[static_cast<size_t>(index)];
  const bool unbounded = node.max == RegexProgram::kUnbounded;
  if (unbounded && at >= failed.begin && at < failed.end) return kNone;
  size_t begin = at;
  for (uint32_t i = 0; i < node.min; ++i) {
    if (at >= text_.size()) return kNone;
    const Decoded c = decode_utf8(text_, at);
    if (!node.set.contains(c.code)) return kNone;
    at += c.length;
  }
  if (node.min == node.max) return match(node.next, at);
  if (node.mode == Mode::kLazy) {
    for (uint32_t count = node.min;; ++count) {
      const size_t end = match(node.next, at);
      if (end != kNone || count == node.max || at >= text_.size()) return end;
      const Decoded c = decode_utf8(text_, at);
      if (!node.set.contains(c.code)) return kNone;
      at += c.length;
    }
  }
  const size_t least = at;
  for (uint32_t count = node.min; count < node.max && at < text_.size(); ++count) {
    const Decoded c = decode_utf8(text_, at);
    if (!node.set.contains(c.code)) break;
    at += c.length;
  }
  if (node.mode == Mode::kPossessive) return match(node.next, at);
  const FirstCharacters& rest = program_.node(node.next).first;
  const size_t farthest = at;
  for (;;) {
    if (rest.empty || (at < text_.size() && rest.admits(static_cast<unsigned char>(text_[at])))) {
      const size_t end = match(node.next, at);
      if (end != kNone) return end;
    }
    if (at == least) break;
    at -= length_before(text_, at);
  }
  // Whoever enters this run between here and its end can only try some of the same ends.
  if (unbounded) failed = {begin, farthest};
  return kNone;
}

size_t RegexSearch::match_alternatives(int32_t index, size_t at) {
  const RegexProgram::Node& node = program_.node(index);
  for (const int32_t branch : node.branches) {
    const FirstCharacters& first = program_.node(branch).first;
    if (!first.empty && (at >= text_.size() || !first.admits(static_cast<unsigned char>(text_[at]))))
      continue;
    const size_t end = match(branch, at);
    if (end != kNone) return end;
  }
  return kNone;
}

size_t RegexSearch::match(int32_t index, size_t at) {
  for (;;) {
    const RegexProgram::Node& node = program_.node(index);
    bool holds = true;
    switch (node.kind) {
      case Kind::kAccept:
        return at;
      case Kind::kRun:
        return match_run(index, at);
      case Kind::kAlternatives:
        return match_alternatives(index, at);
      case Kind::kLookAhead:
        holds = (match(node.branches[0], at) != kNone) != node.negative;
        break;
      case Kind::kLookBehind: {
        const size_t length = at > 0 ? length_before(text_, at) : 0;
        holds = (at > 0 && node.set.contains(decode_utf8(text_, at - length).code)) != node.negative;
        break;
      }
      case Kind::kAtomic:
        at = match(node.branches[0], at);
        if (at == kNone) return kNone;
        break;
      case Kind::kLineBegin:
        holds = at == 0 || (text_[at - 1] == '\n' && at < text_.size());
        break;
      case Kind::kLineEnd:
        holds = at == text_.size() || text_[at] == '\n';
        break;
      case Kind::kTextBegin:
        holds = at == 0;
        break;
      case Kind::kTextEnd:
        holds = at == text_.size();
        break;
    }
    if (!holds) return kNone;
    index = node.next;
  }
}

}  // namespace moebius::data
