// The compiled form of a Regex: a graph of nodes, each of which knows what must match after it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/bpe/unicode.h"

namespace moebius::data {

// The characters that a match can begin with; what is not ASCII counts as one.
struct FirstCharacters {
  uint64_t ascii[2] = {0, 0};
  bool other = false;  // a character beyond ASCII may come first
  bool empty = false;  // nothing may be consumed at all

  bool admits(unsigned char byte) const { return byte < 128 ? (ascii[byte >> 6] >> (byte & 63)) & 1 : other; }
};

class RegexProgram {
 public:
  enum class Kind : uint8_t {
    kAccept,        // the end of the pattern, or of what a look-around or atomic group holds
    kRun,           // between min and max characters of `set`
    kAlternatives,  // `branches` in order
    kLookAhead,     // `branches[0]` must match here (or must not: `negative`)
    kLookBehind,    // the character before is of `set` (or is not)
    kAtomic,        // `branches[0]` once, without coming back to it
    kLineBegin,
    kLineEnd,
    kTextBegin,
    kTextEnd,
  };
  enum class Mode : uint8_t { kGreedy, kLazy, kPossessive };
  static constexpr uint32_t kUnbounded = ~0u;

  struct Node {
    Kind kind = Kind::kAccept;
    Mode mode = Mode::kGreedy;
    bool negative = false;
    uint32_t min = 1, max = 1;
    int32_t next = -1;
    CharSet set;
    std::vector<int32_t> branches;
    FirstCharacters first;  // of the whole rest of the match from this node on
  };

  RegexProgram(const std::string& pattern, const std::string& where);

  const Node& node(int32_t i) const { return nodes_[static_cast<size_t>(i)]; }
  size_t size() const { return nodes_.size(); }
  int32_t start() const { return start_; }

 private:
  friend class RegexCompiler;
  std::vector<Node> nodes_;
  int32_t start_ = 0;
};

}  // namespace moebius::data
