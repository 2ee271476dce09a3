// Regular expressions as tokenizer.json files use them to split text: a small backtracking matcher over UTF-8
// with the meaning that Oniguruma (Ruby syntax), which the `tokenizers` package uses, gives to the same
// pattern.
//
// Known: characters, escapes (\n \r \t \f \v \xHH \x{H…} \uHHHH), `.`, classes with ranges and nested
// classes, \s \S \d \D \w \W, \p{…} \P{…} \p{^…} of general categories, groups ( ) (?: ) (?i: ) (?-i: ) (?>
// ), a leading (?i), alternation, ? * + {n} {n,} {n,m} {,n} (greedy, lazy with ?, possessive with +),
// look-ahead, look-behind for one character, ^ $ \A \z. Not known (UserError at construction):
// back-references, unbounded repetition of a group of several characters, scripts and other properties, && in
// classes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius::data {

class RegexProgram;

// Immutable; may be used from several threads, each with an own RegexSearch.
class Regex {
 public:
  // Throws UserError that begins with `where` and names the construct.
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  const std::string& pattern() const { return pattern_; }

 private:
  friend class RegexSearch;
  std::string pattern_;
  std::unique_ptr<const RegexProgram> program_;
};

// Matches in one text. Remembers where runs failed, so that the searches of one text take time linear in its
// length for patterns such as \s+$ .
class RegexSearch {
 public:
  static constexpr size_t kNone = static_cast<size_t>(-1);

  // Both must outlive the object.
  RegexSearch(const Regex& regex, std::string_view text);

  // End of the match that begins at `at`, or kNone.
  size_t match_at(size_t at);
  // The leftmost match that begins at `from` or later: (begin, end), or (kNone, kNone).
  std::pair<size_t, size_t> find(size_t from);
  // All matches from left to right without overlap; an empty one right after another match is left out.
  std::vector<std::pair<size_t, size_t>> find_all();

 private:
  struct Failed {
    size_t begin = 1, end = 0;
  };

  size_t match(int32_t node, size_t at);
  size_t match_run(int32_t node, size_t at);
  size_t match_alternatives(int32_t node, size_t at);

  const RegexProgram& program_;
  std::string_view text_;
  std::vector<Failed> failed_;  // per node
};

}  // namespace moebius::data
