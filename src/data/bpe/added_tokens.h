// Tokens that are found in a text before anything else happens to it (special tokens and such as users add).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::data {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;
  bool normalized = false;              // looked for in the normalised text, else in the text as it is
  bool single_word = false;             // only where no word character stands next to it
  bool lstrip = false, rstrip = false;  // takes the white space before it, after it, along
};

// Cuts texts at the tokens of one kind. Of several that begin at one place the longest counts. Immutable.
class AddedTokenMatcher {
 public:
  // What a text is cut into: a token, or text between tokens (id -1).
  struct Part {
    size_t begin, end;
    int32_t id;
  };

  AddedTokenMatcher() = default;
  // Tokens with an empty content are left out; of equal contents the first counts.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }
  // Appends the parts of `text` from left to right; as in the `tokenizers` package a token that takes white
  // space along may reach over the begin of the next one.
  void split(std::string_view text, std::vector<Part>& parts) const;

 private:
  // The longest token at text[at], or null.
  const AddedToken* longest_at(std::string_view text, size_t at) const;
  // The first place from `at` on where a token may begin, or text.size().
  size_t next_candidate(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;     // sorted by content
  std::array<bool, 256> begins_ = {};  // first bytes
  std::vector<bool> pairs_;            // first two bytes; all pairs of a token of one byte
  std::string only_begin_;             // the first byte where all tokens share it
};

}  // namespace moebius::data
