// Split patterns of well-known tokenizers, by hand for the parts of a text that are ASCII. Each rule returns
// the end of the piece that begins at `at`, or kUndecided where a character beyond ASCII could have a say;
// then the pattern itself (data/bpe/regex.h) decides. Tests hold rules and patterns against each other.
//
//   GPT-2       GPT-2, GPT-NeoX, OLMoE: the ByteLevel pre-tokenizer's own pattern
//   cl100k      Llama 3, GLM-4.5 (up to three digits a piece), Qwen 2 and 3 (one)
//   o200k       gpt-oss
//   DeepSeek    V3: numbers, Chinese and Japanese characters, then words
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "data/bpe/unicode.h"

namespace moebius::data {

inline constexpr size_t kUndecided = static_cast<size_t>(-1);

namespace ascii {

enum Class : uint8_t {
  kLetter = 1,
  kDigit = 2,
  kSpace = 4,
  kLineEnd = 8,
  kPunct = 16,
  kControl = 32,
  kOther = 64
};

inline constexpr std::array<uint8_t, 256> kClasses = [] {
  std::array<uint8_t, 256> classes{};
  for (int c = 0; c < 256; ++c) {
    if (c >= 128)
      classes[c] = kOther;
    else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
      classes[c] = kLetter;
    else if (c >= '0' && c <= '9')
      classes[c] = kDigit;
    else if (c == '\r' || c == '\n')
      classes[c] = kLineEnd;
    else if (c == ' ' || c == '\t' || c == '\v' || c == '\f')
      classes[c] = kSpace;
    else if (c > ' ' && c < 127)
      classes[c] = kPunct;
    else
      classes[c] = kControl;
  }
  return classes;
}();

inline uint8_t class_at(std::string_view text, size_t at) {
  return kClasses[static_cast<unsigned char>(text[at])];
}

// The end of the characters of `classes` from `at` on.
inline size_t run(std::string_view text, size_t at, uint8_t classes) {
  while (at < text.size() && (class_at(text, at) & classes)) ++at;
  return at;
}

// As run(text, at, kLetter), eight bytes at a time.
inline size_t letters(std::string_view text, size_t at) {
  constexpr uint64_t kOnes = 0x0101010101010101ull, kHigh = 0x80 * kOnes;
  while (at + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    const uint64_t lower = (word | 0x20 * kOnes) & ~kHigh;
    const uint64_t from_a = lower + (0x80 - 'a') * kOnes, after_z = lower + (0x80 - 'z' - 1) * kOnes;
    const uint64_t others = ~(from_a & ~after_z & ~word) & kHigh;
    if (others != 0) return at + static_cast<size_t>(__builtin_ctzll(others)) / 8;
    at += 8;
  }
  return run(text, at, kLetter);
}

// Whether the character at text[at] is beyond ASCII and of one of the categories.
inline bool is_other_of(std::string_view text, size_t at, uint32_t categories) {
  if (at >= text.size() || class_at(text, at) != kOther) return false;
  return (category_bit(decode_utf8(text, at).code) & categories) != 0;
}
// Beyond ASCII the white space is the separators and U+0085, a control character.
inline constexpr uint32_t kMaybeSpace = kSeparators | categories({Category::Cc});

// The end of 's 't 're 've 'm 'll 'd at text[at] = ', or `at` when there is none.
template <bool kIgnoreCase>
size_t contraction(std::string_view text, size_t at) {
  if (at + 1 >= text.size()) return at;
  const auto letter = [&](size_t k) {
    const char c = at + k < text.size() ? text[at + k] : '\0';
    return kIgnoreCase ? static_cast<char>(c | 0x20) : c;
  };
  const char first = letter(1), second = letter(2);
  switch (first) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return at + 2;
    case 'r':
    case 'v':
      return second == 'e' ? at + 3 : at;
    case 'l':
      return second == 'l' ? at + 3 : at;
    default:
      return at;
  }
}
// The long s is an s to (?i:'s).
inline bool long_s_follows(std::string_view text, size_t at) {
  return at + 2 < text.size() && text[at + 1] == '\xC5' && text[at + 2] == '\xBF';
}

// \s+(?!\S)|\s+ for the white space [at, end); at_end: nothing follows, so all of it is one piece.
inline size_t spaces(size_t at, size_t end, bool at_end) {
  return at_end || end == at + 1 ? end : end - 1;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ for the white space [at, end).
inline size_t spaces_or_lines(std::string_view text, size_t at, size_t end, bool at_end) {
  for (size_t i = end; i > at; --i)
    if (text[i - 1] == '\n' || text[i - 1] == '\r') return i;
  return spaces(at, end, at_end);
}

// ` ?[^\s\p{L}\p{N}]+` from `first` on (behind the space), or kUndecided.
inline size_t punctuation(std::string_view text, size_t first) {
  const size_t end = run(text, first, kPunct | kControl);
  if (end < text.size() && class_at(text, end) == kOther &&
      !is_other_of(text, end, kLetters | kNumbers | kSeparators))
    return kUndecided;
  return end;
}

}  // namespace ascii

struct Gpt2Rule {
  static size_t next(std::string_view text, size_t at) {
    using namespace ascii;
    if (text[at] == '\'') {
      if (const size_t end = contraction<false>(text, at); end > at) return end;
    }
    const size_t first = at + (text[at] == ' ');
    const uint8_t kind = first < text.size() ? class_at(text, first) : uint8_t{kSpace};
    if (kind == kLetter) {
      const size_t end = letters(text, first);
      return is_other_of(text, end, kLetters) ? kUndecided : end;
    }
    if (kind == kDigit) {
      const size_t end = run(text, first, kDigit);
      return is_other_of(text, end, kNumbers) ? kUndecided : end;
    }
    if (kind & (kPunct | kControl)) return punctuation(text, first);
    if (kind == kOther) return kUndecided;
    const size_t end = run(text, at, kSpace | kLineEnd);
    if (is_other_of(text, end, kMaybeSpace)) return kUndecided;
    return spaces(at, end, end == text.size());
  }
};

template <size_t kMaxDigits>
struct Cl100kRule {
  static size_t next(std::string_view text, size_t at) {
    using namespace ascii;
    const uint8_t kind = class_at(text, at);
    if (kind == kOther) return kUndecided;
    if (text[at] == '\'') {
      if (long_s_follows(text, at)) return kUndecided;
      if (const size_t end = contraction<true>(text, at); end > at) return end;
    }
    if (kind == kDigit) return digits(text, at);
    if (kind != kLineEnd) {
      const size_t first = at + (kind != kLetter);
      if (first < text.size()) {
        if (class_at(text, first) == kLetter) {
          const size_t end = letters(text, first);
          return is_other_of(text, end, kLetters) ? kUndecided : end;
        }
        if (is_other_of(text, first, kLetters)) return kUndecided;
      }
    }
    return others(text, at);
  }

 private:
  static size_t digits(std::string_view text, size_t at) {
    size_t end = at;
    while (end < text.size() && end < at + kMaxDigits && ascii::class_at(text, end) == ascii::kDigit) ++end;
    return end < at + kMaxDigits && ascii::is_other_of(text, end, kNumbers) ? kUndecided : end;
  }
  static size_t others(std::string_view text, size_t at) {
    using namespace ascii;
    const size_t first = at + (text[at] == ' ');
    if (first < text.size() && (class_at(text, first) & (kPunct | kControl | kOther))) {
      const size_t end = punctuation(text, first);
      if (end == kUndecided) return end;
      if (end > first) return run(text, end, kLineEnd);
    }
    const size_t end = run(text, at, kSpace | kLineEnd);
    if (is_other_of(text, end, kMaybeSpace)) return kUndecided;
    return spaces_or_lines(text, at, end, end == text.size());
  }
};

struct O200kRule {
  static size_t next(std::string_view text, size_t at) {
    using namespace ascii;
    const uint8_t kind = class_at(text, at);
    if (kind == kOther) return kUndecided;
    if (kind == kDigit) {
      size_t end = at;
      while (end < text.size() && end < at + 3 && class_at(text, end) == kDigit) ++end;
      return end < at + 3 && is_other_of(text, end, kNumbers) ? kUndecided : end;
    }
    if (kind != kLineEnd) {
      const size_t first = at + (kind != kLetter);
      if (first < text.size()) {
        if (class_at(text, first) == kLetter) return word(text, first);
        if (is_other_of(text, first, kLetters | kMarks)) return kUndecided;
      }
    }
    const size_t first = at + (text[at] == ' ');
    if (first < text.size() && (class_at(text, first) & (kPunct | kControl | kOther))) {
      size_t end = punctuation(text, first);
      if (end == kUndecided) return end;
      if (end > first) {
        while (end < text.size() && (class_at(text, end) == kLineEnd || text[end] == '/')) ++end;
        return end;
      }
    }
    const size_t end = run(text, at, kSpace | kLineEnd);
    if (is_other_of(text, end, kMaybeSpace)) return kUndecided;
    return spaces_or_lines(text, at, end, end == text.size());
  }

 private:
  // Capitals and then small letters, and a contraction; in ASCII no letter is both.
  static size_t word(std::string_view text, size_t at) {
    using namespace ascii;
    size_t end = at;
    while (end < text.size() && text[end] >= 'A' && text[end] <= 'Z') ++end;
    while (end < text.size() && text[end] >= 'a' && text[end] <= 'z') ++end;
    if (is_other_of(text, end, kLetters | kMarks)) return kUndecided;
    if (end < text.size() && text[end] == '\'') {
      if (long_s_follows(text, end)) return kUndecided;
      return contraction<true>(text, end);
    }
    return end;
  }
};

struct DeepSeekRule {
  static size_t next(std::string_view text, size_t at) {
    using namespace ascii;
    const uint8_t kind = class_at(text, at);
    if (kind == kOther) return kUndecided;
    if (kind == kDigit) {
      size_t end = at;
      while (end < text.size() && end < at + 3 && class_at(text, end) == kDigit) ++end;
      return end < at + 3 && is_other_of(text, end, kNumbers) ? kUndecided : end;
    }
    if (kind == kPunct && at + 1 < text.size() && class_at(text, at + 1) == kLetter)
      return letters(text, at + 1);
    if (kind & (kLetter | kSpace | kControl)) {
      const size_t first = at + (kind != kLetter);
      if (first < text.size()) {
        if (class_at(text, first) == kLetter) {
          const size_t end = letters(text, first);
          return end < text.size() && is_other_of(text, end, kLetters | kMarks) ? kUndecided : end;
        }
        if (class_at(text, first) == kOther) return kUndecided;
      }
      if (kind == kControl) return kUndecided;
    }
    const size_t first = at + (text[at] == ' ');
    if (first < text.size() && class_at(text, first) == kPunct) {
      const size_t end = run(text, first, kPunct);
      if (is_other_of(text, end, kPunctuation | kSymbols)) return kUndecided;
      return run(text, end, kLineEnd);
    }
    const size_t end = run(text, at, kSpace | kLineEnd);
    if (end < text.size() && class_at(text, end) == kOther) return kUndecided;
    // Numbers are cut out before anything else, so that white space before one is at an end.
    return spaces_or_lines(text, at, end, end == text.size() || class_at(text, end) == kDigit);
  }
};

}  // namespace moebius::data
