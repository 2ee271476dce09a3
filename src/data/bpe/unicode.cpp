#include "data/bpe/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "data/bpe/category_data.h"

namespace moebius::data {
namespace {

constexpr uint32_t kBlock = 128, kEnd = 0x110000;

// Two stages: most of the 8,704 blocks of 128 code points are alike and stored once.
class CategoryTable {
 public:
  CategoryTable() {
    std::map<std::array<uint8_t, kBlock>, uint16_t> known;
    size_t change = 0;
    for (uint32_t block = 0; block < kEnd / kBlock; ++block) {
      std::array<uint8_t, kBlock> values;
      for (uint32_t i = 0; i < kBlock; ++i) {
        const uint32_t code = block * kBlock + i;
        while (change + 1 < kCategoryChangesSize && kCategoryChanges[change + 1] >> 5 <= code) ++change;
        values[i] = kCategoryChanges[change] & 31;
      }
      const auto [entry, added] = known.emplace(values, static_cast<uint16_t>(known.size()));
      if (added) values_.insert(values_.end(), values.begin(), values.end());
      block_[block] = entry->second;
    }
  }
  Category at(uint32_t code) const {
    return static_cast<Category>(values_[block_[code / kBlock] * kBlock + code % kBlock]);
  }

 private:
  std::array<uint16_t, kEnd / kBlock> block_;
  std::vector<uint8_t> values_;
};

const CategoryTable kTable;

}  // namespace

Category category_of(uint32_t code) {
  return kTable.at(code);
}

bool is_white_space(uint32_t code) {
  if (code < 128) return code == ' ' || (code >= 9 && code <= 13);
  return code == 0x85 || (category_bit(code) & kSeparators) != 0;
}

void append_utf8(uint32_t code, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

CharSet CharSet::of_categories(uint32_t mask) {
  CharSet set;
  set.categories_ = mask;
  set.update_ascii();
  return set;
}

CharSet CharSet::of_range(uint32_t first, uint32_t last) {
  CharSet set;
  set.ranges_.emplace_back(first, last);
  set.update_ascii();
  return set;
}

CharSet CharSet::white_space() {
  CharSet set = of_categories(kSeparators);
  set.add(of_range(9, 13));
  set.add(of_range(0x85, 0x85));
  return set;
}

CharSet CharSet::digits() {
  return of_categories(categories({Category::Nd}));
}

CharSet CharSet::word() {
  CharSet set = of_categories(kLetters | kMarks | categories({Category::Nd, Category::Nl, Category::Pc}));
  // Circled and squared letters; and the superscripts and fractions of Latin-1, which Oniguruma's table of
  // the first 256 characters counts in.
  for (const auto& [first, last] : std::initializer_list<std::pair<uint32_t, uint32_t>>{{0x24B6, 0x24E9},
                                                                                        {0x1F130, 0x1F149},
                                                                                        {0x1F150, 0x1F169},
                                                                                        {0x1F170, 0x1F189},
                                                                                        {0xB2, 0xB3},
                                                                                        {0xB9, 0xB9},
                                                                                        {0xBC, 0xBE}})
    set.add(of_range(first, last));
  return set;
}

void CharSet::add(const CharSet& other) {
  if (other.negated_ || !other.parts_.empty()) {
    parts_.push_back(other);
  } else {
    categories_ |= other.categories_;
    ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
    std::sort(ranges_.begin(), ranges_.end());
    std::vector<std::pair<uint32_t, uint32_t>> joined;
    for (const auto& range : ranges_) {
      if (!joined.empty() && range.first <= joined.back().second + 1)
        joined.back().second = std::max(joined.back().second, range.second);
      else
        joined.push_back(range);
    }
    ranges_ = std::move(joined);
  }
  update_ascii();
}

CharSet CharSet::negated() const {
  CharSet set = *this;
  set.negated_ = !negated_;
  set.update_ascii();
  return set;
}

bool CharSet::contains_other(uint32_t code) const {
  bool found = (category_bit(code) & categories_) != 0;
  if (!found && !ranges_.empty()) {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), std::pair(code, ~0u));
    found = after != ranges_.begin() && std::prev(after)->second >= code;
  }
  for (size_t i = 0; !found && i < parts_.size(); ++i) found = parts_[i].contains(code);
  return found != negated_;
}

void CharSet::update_ascii() {
  std::memset(ascii_, 0, sizeof(ascii_));
  for (uint32_t code = 0; code < 128; ++code)
    if (contains_other(code)) ascii_[code >> 6] |= uint64_t{1} << (code & 63);
}

}  // namespace moebius::data
