#include "data/bpe/normal_form.h"

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "data/bpe/normal_form_data.h"
#include "data/bpe/unicode.h"

namespace moebius::data {
namespace {

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
constexpr uint32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr uint32_t kNumLeading = 19, kNumVowels = 21, kNumTrailing = 28;
constexpr uint32_t kNumSyllables = kNumLeading * kNumVowels * kNumTrailing;

struct Tables {
  std::unordered_map<uint32_t, std::pair<uint32_t, uint32_t>> decompositions;
  std::unordered_map<uint64_t, uint32_t> compositions;
  std::vector<bool> active;  // per code point: form C may change it, or what stands before it

  Tables() : active(0x110000) {
    constexpr uint32_t kCode = 0x1FFFFF;
    for (size_t i = 0; i < kDecompositionsSize; ++i) {
      const uint64_t entry = kDecompositions[i];
      const uint32_t code = entry & kCode, first = (entry >> 21) & kCode, second = (entry >> 42) & kCode;
      decompositions[code] = {first, second};
      if (entry >> 63) {
        compositions[uint64_t{first} << 32 | second] = code;
        active[second] = true;
      } else {
        active[code] = true;
      }
    }
    for (size_t i = 0; i < kCombiningClassChangesSize; ++i) {
      if ((kCombiningClassChanges[i] & 255) == 0) continue;
      const uint32_t end = i + 1 < kCombiningClassChangesSize ? kCombiningClassChanges[i + 1] >> 8 : 0x110000;
      for (uint32_t code = kCombiningClassChanges[i] >> 8; code < end; ++code) active[code] = true;
    }
    for (uint32_t i = 0; i < kNumVowels; ++i) active[kVowels + i] = true;
    for (uint32_t i = 1; i < kNumTrailing; ++i) active[kTrailing + i] = true;
  }
};

const Tables& tables() {
  static const Tables all;
  return all;
}

uint8_t combining_class(uint32_t code) {
  const uint32_t* const end = kCombiningClassChanges + kCombiningClassChangesSize;
  return static_cast<uint8_t>(*std::prev(std::upper_bound(kCombiningClassChanges, end, code << 8 | 255)));
}

void decompose(uint32_t code, std::vector<uint32_t>& out) {
  if (code >= kSyllables && code < kSyllables + kNumSyllables) {
    const uint32_t index = code - kSyllables;
    out.push_back(kLeading + index / (kNumVowels * kNumTrailing));
    out.push_back(kVowels + index % (kNumVowels * kNumTrailing) / kNumTrailing);
    if (index % kNumTrailing != 0) out.push_back(kTrailing + index % kNumTrailing);
    return;
  }
  const auto found = tables().decompositions.find(code);
  if (found == tables().decompositions.end()) {
    out.push_back(code);
    return;
  }
  decompose(found->second.first, out);
  if (found->second.second != 0) out.push_back(found->second.second);  // never decomposes itself
}

// The composite of two characters, or 0.
uint32_t compose(uint32_t first, uint32_t second) {
  if (first >= kLeading && first < kLeading + kNumLeading && second >= kVowels &&
      second < kVowels + kNumVowels) {
    return kSyllables + ((first - kLeading) * kNumVowels + (second - kVowels)) * kNumTrailing;
  }
  if (first >= kSyllables && first < kSyllables + kNumSyllables && (first - kSyllables) % kNumTrailing == 0 &&
      second > kTrailing && second < kTrailing + kNumTrailing) {
    return first + (second - kTrailing);
  }
  const auto found = tables().compositions.find(uint64_t{first} << 32 | second);
  return found == tables().compositions.end() ? 0 : found->second;
}

}  // namespace

size_t normal_form_c_prefix(std::string_view text) {
  const Tables& all = tables();
  size_t safe = 0;  // begin of the last character that could combine with what follows
  for (size_t at = 0; at < text.size();) {
    const Decoded c = decode_utf8(text, at);
    if (all.active[c.code]) return safe;
    safe = at;
    at += c.length;
  }
  return text.size();
}

std::string normal_form_c(std::string_view text) {
  std::vector<uint32_t> codes;
  for (size_t at = 0; at < text.size();) {
    const Decoded c = decode_utf8(text, at);
    decompose(c.code, codes);
    at += c.length;
  }
  std::vector<uint8_t> classes(codes.size());
  std::transform(codes.begin(), codes.end(), classes.begin(), combining_class);
  // Canonical order: marks between two starters by class, stable.
  for (size_t i = 0; i < codes.size();) {
    if (classes[i] == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < codes.size() && classes[end] != 0) ++end;
    std::vector<std::pair<uint8_t, uint32_t>> marks;
    for (size_t k = i; k < end; ++k) marks.emplace_back(classes[k], codes[k]);
    std::stable_sort(marks.begin(), marks.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t k = i; k < end; ++k) std::tie(classes[k], codes[k]) = marks[k - i];
    i = end;
  }
  // Composition: each character with the last starter, unless one of the same or a higher class is between.
  std::vector<uint32_t> composed;
  size_t starter = codes.size();  // in `composed`; codes.size(): none yet
  int last_class = -1;            // of what stands between the starter and here; -1: nothing
  for (size_t i = 0; i < codes.size(); ++i) {
    const int own = classes[i];
    if (starter < codes.size() && last_class < own) {
      if (const uint32_t pair = compose(composed[starter], codes[i]); pair != 0) {
        composed[starter] = pair;
        continue;
      }
    }
    if (own == 0) {
      starter = composed.size();
      last_class = -1;
    } else {
      last_class = own;
    }
    composed.push_back(codes[i]);
  }
  std::string out;
  out.reserve(text.size());
  for (const uint32_t code : composed) append_utf8(code, out);
  return out;
}

}  // namespace moebius::data
