// General categories of all code points, as tools/tables/unicode_tables.py writes them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moebius::data {

// (first code point << 5 | category) of each run of code points with the same category, ascending; the
// category counts as enum class Category in data/bpe/unicode.h.
extern const uint32_t kCategoryChanges[];
extern const size_t kCategoryChangesSize;

}  // namespace moebius::data
