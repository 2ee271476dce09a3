// Characters: UTF-8 in and out, general categories, and sets of characters as split patterns use them.
// Unicode 16.0 (tools/tables/unicode_tables.py).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius::data {

// clang-format off
enum class Category : uint8_t {
  Lu, Ll, Lt, Lm, Lo, Mn, Mc, Me, Nd, Nl, No, Pc, Pd, Ps, Pe, Pi, Pf, Po, Sm, Sc, Sk, So, Zs, Zl, Zp, Cc, Cf,
  Cs, Co, Cn
};
// clang-format on
inline constexpr int kNumCategories = 30;

constexpr uint32_t categories(std::initializer_list<Category> list) {
  uint32_t mask = 0;
  for (const Category category : list) mask |= 1u << static_cast<int>(category);
  return mask;
}
inline constexpr uint32_t kLetters =
    categories({Category::Lu, Category::Ll, Category::Lt, Category::Lm, Category::Lo});
inline constexpr uint32_t kMarks = categories({Category::Mn, Category::Mc, Category::Me});
inline constexpr uint32_t kNumbers = categories({Category::Nd, Category::Nl, Category::No});
inline constexpr uint32_t kPunctuation = categories(
    {Category::Pc, Category::Pd, Category::Ps, Category::Pe, Category::Pi, Category::Pf, Category::Po});
inline constexpr uint32_t kSymbols = categories({Category::Sm, Category::Sc, Category::Sk, Category::So});
inline constexpr uint32_t kSeparators = categories({Category::Zs, Category::Zl, Category::Zp});
inline constexpr uint32_t kOthers =
    categories({Category::Cc, Category::Cf, Category::Cs, Category::Co, Category::Cn});
inline constexpr uint32_t kAllCategories = (1u << kNumCategories) - 1;

// `code` up to U+10FFFF.
Category category_of(uint32_t code);
// As a mask of one bit, to be tested against the masks above.
inline uint32_t category_bit(uint32_t code) {
  return 1u << static_cast<int>(category_of(code));
}
// Unicode's White_Space.
bool is_white_space(uint32_t code);

struct Decoded {
  uint32_t code;
  uint32_t length;  // bytes
};
// The character at text[at] of well-formed UTF-8.
inline Decoded decode_utf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t k) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + k])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}
// Bytes of the character that ends just before text[at], at > 0.
inline size_t length_before(std::string_view text, size_t at) {
  size_t length = 1;
  while (length < at && (static_cast<unsigned char>(text[at - length]) & 0xC0) == 0x80) ++length;
  return length;
}
void append_utf8(uint32_t code, std::string& out);

// A set of characters: whole categories, ranges beside them, and perhaps everything else instead.
class CharSet {
 public:
  CharSet() = default;
  static CharSet of_categories(uint32_t mask);
  static CharSet of_range(uint32_t first, uint32_t last);
  static CharSet white_space();
  static CharSet digits();  // \d of a regular expression: decimal digits of all scripts
  static CharSet word();    // \w of Oniguruma

  void add(const CharSet& other);
  CharSet negated() const;

  bool contains(uint32_t code) const {
    if (code < 128) return (ascii_[code >> 6] >> (code & 63)) & 1;
    return contains_other(code);
  }

 private:
  bool contains_other(uint32_t code) const;
  void update_ascii();

  uint64_t ascii_[2] = {0, 0};
  uint32_t categories_ = 0;
  bool negated_ = false;
  std::vector<std::pair<uint32_t, uint32_t>> ranges_;
  std::vector<CharSet> parts_;  // negated sets inside this one
};

}  // namespace moebius::data
