#include "data/bpe/pre_tokenizer.h"

#include <utility>

#include "data/bpe/normalizer.h"
#include "data/bpe/unicode.h"

namespace moebius::data {
namespace {

using Kind = PreTokenizerStep::Kind;
using Behavior = PreTokenizerStep::Behavior;
using Prepend = PreTokenizerStep::Prepend;

struct Part {
  size_t begin, end;
  bool match;
};

// The whole of `text` as matches and what lies between them.
std::vector<Part> with_gaps(std::string_view text, const std::vector<std::pair<size_t, size_t>>& matches) {
  std::vector<Part> parts;
  size_t at = 0;
  for (const auto& [begin, end] : matches) {
    if (at != begin) parts.push_back({at, begin, false});
    parts.push_back({begin, end, true});
    at = end;
  }
  if (at != text.size()) parts.push_back({at, text.size(), false});
  return parts;
}

std::vector<std::pair<size_t, size_t>> find_text(std::string_view text, std::string_view pattern) {
  std::vector<std::pair<size_t, size_t>> matches;
  for (size_t at = 0; !pattern.empty();) {
    const size_t found = text.find(pattern, at);
    if (found == std::string_view::npos) break;
    matches.emplace_back(found, found + pattern.size());
    at = found + pattern.size();
  }
  return matches;
}

// is_numeric of Rust's standard library, which has Unicode 17's numbers.
bool is_numeric(uint32_t code) {
  return (category_bit(code) & kNumbers) != 0 || (code >= 0x11DE0 && code <= 0x11DE9) ||
         (code >= 0x16FF4 && code <= 0x16FF6);
}

std::vector<std::pair<size_t, size_t>> find_numbers(std::string_view text) {
  std::vector<std::pair<size_t, size_t>> matches;
  for (size_t at = 0; at < text.size();) {
    const Decoded c = decode_utf8(text, at);
    if (is_numeric(c.code)) matches.emplace_back(at, at + c.length);
    at += c.length;
  }
  return matches;
}

void split_pieces(std::string_view text, std::vector<Part> parts, Behavior behavior,
                  std::vector<std::string_view>& out) {
  const auto emit = [&](size_t begin, size_t end) {
    if (begin < end) out.push_back(text.substr(begin, end - begin));
  };
  switch (behavior) {
    case Behavior::kIsolated:
      for (const Part& part : parts) emit(part.begin, part.end);
      break;
    case Behavior::kRemoved:
      for (const Part& part : parts)
        if (!part.match) emit(part.begin, part.end);
      break;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious: {
      // Contiguous joins neighbours of the same kind, the other a match with what is before it.
      std::vector<Part> joined;
      bool previous = false;
      for (const Part& part : parts) {
        const bool joins =
            behavior == Behavior::kContiguous ? part.match == previous : part.match && !previous;
        if (joins && !joined.empty()) {
          joined.back().end = part.end;
        } else {
          joined.push_back(part);
        }
        previous = part.match;
      }
      for (const Part& part : joined) emit(part.begin, part.end);
      break;
    }
    case Behavior::kMergedWithNext: {
      std::vector<Part> joined;  // from right to left
      bool previous = false;
      for (size_t i = parts.size(); i-- > 0;) {
        if (parts[i].match && !previous && !joined.empty()) {
          joined.back().begin = parts[i].begin;
        } else {
          joined.push_back(parts[i]);
        }
        previous = parts[i].match;
      }
      for (size_t i = joined.size(); i-- > 0;) emit(joined[i].begin, joined[i].end);
      break;
    }
  }
}

std::string_view rewrite_spaces(const PreTokenizerStep& step, std::string_view piece, PieceOrigin origin,
                                bool first, std::deque<std::string>& storage) {
  const bool wanted =
      step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && first && origin.text_begin);
  std::string text = replace_all(piece, " ", step.text);
  if (wanted && !(first && origin.continued) && !text.starts_with(step.text)) text.insert(0, step.text);
  return storage.emplace_back(std::move(text));
}

}  // namespace

void PreTokenizer::apply(std::string_view text, PieceOrigin origin, Pieces& pieces) const {
  pieces.clear();
  if (text.empty()) return;
  pieces.views.push_back(text);
  std::vector<std::string_view> next;
  for (const PreTokenizerStep& step : steps_) {
    next.clear();
    for (size_t i = 0; i < pieces.views.size(); ++i) {
      const std::string_view piece = pieces.views[i];
      switch (step.kind) {
        case Kind::kSplit:
        case Kind::kSplitText: {
          auto parts = with_gaps(piece, step.kind == Kind::kSplit ? RegexSearch(*step.regex, piece).find_all()
                                                                  : find_text(piece, step.text));
          if (step.invert)
            for (Part& part : parts) part.match = !part.match;
          split_pieces(piece, std::move(parts), step.behavior, next);
          break;
        }
        case Kind::kDigits:
          split_pieces(piece, with_gaps(piece, find_numbers(piece)), step.behavior, next);
          break;
        case Kind::kMetaspace: {
          const std::string_view spaced = rewrite_spaces(step, piece, origin, i == 0, pieces.storage);
          if (step.split) {
            split_pieces(spaced, with_gaps(spaced, find_text(spaced, step.text)), Behavior::kMergedWithNext,
                         next);
          } else {
            next.push_back(spaced);
          }
          break;
        }
        case Kind::kBytePrefix:
          if (piece.starts_with(' ') || (i == 0 && origin.continued)) {
            next.push_back(piece);
          } else {
            next.push_back(pieces.storage.emplace_back(" ").append(piece));
          }
          break;
      }
    }
    pieces.views.swap(next);
  }
}

}  // namespace moebius::data
