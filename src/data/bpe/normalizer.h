// What a tokenizer.json does to a text before it is split: a list of steps.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe/regex.h"

namespace moebius::data {

struct NormalizerStep {
  enum class Kind { kPrepend, kReplace, kReplaceRegex, kFormC };
  Kind kind = Kind::kFormC;
  std::string pattern;  // kReplace
  std::string content;  // kPrepend, kReplace, kReplaceRegex
  std::shared_ptr<const Regex> regex;
};

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // What a space becomes, or "".
  std::string space_symbol() const;
  // Whether the text of two lines is that of each, one after the other.
  bool keeps_lines_apart() const;

  // `text` after all steps: `text` itself where they change nothing, else a view of `storage`. With
  // `continued` the text goes on from another one and kPrepend does nothing.
  std::string_view apply(std::string_view text, bool continued, std::string& storage) const;

 private:
  std::vector<NormalizerStep> steps_;
};

// `text` with each `pattern` replaced, from left to right.
std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace moebius::data
