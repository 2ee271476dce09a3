// How a tokenizer.json cuts a text into the pieces that byte-pair merging never crosses: a list of steps,
// each of which cuts (or rewrites) the pieces of the step before.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe/regex.h"

namespace moebius::data {

struct PreTokenizerStep {
  enum class Kind { kSplit, kSplitText, kDigits, kMetaspace, kBytePrefix };
  // What happens to a match of a split: see split_pieces.
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kNever, kFirst, kAlways };

  Kind kind = Kind::kSplit;
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;                 // kSplit, kSplitText: what does not match counts as match
  std::shared_ptr<const Regex> regex;  // kSplit
  std::string text;                    // kSplitText: the pattern; kMetaspace: what stands for a space
  Prepend prepend = Prepend::kAlways;  // kMetaspace
  bool split = true;                   // kMetaspace
};

// Pieces of a text: views of the text, or of rewritten copies in `storage`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> storage;

  void clear() {
    views.clear();
    storage.clear();
  }
};

struct PieceOrigin {
  bool text_begin = true;  // the text begins where the whole input began (for Prepend::kFirst)
  bool continued = false;  // the text goes on from another one: nothing is put before it
};

class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  const std::vector<PreTokenizerStep>& steps() const { return steps_; }
  // Fills `pieces` (emptied first) with the pieces of `text`, none of them empty.
  void apply(std::string_view text, PieceOrigin origin, Pieces& pieces) const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

}  // namespace moebius::data
