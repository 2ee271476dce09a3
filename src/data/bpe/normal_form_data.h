// Canonical combining classes and decompositions, as tools/tables/unicode_tables.py writes them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moebius::data {

// (first code point << 8 | class) of each run of code points with the same combining class, ascending.
extern const uint32_t kCombiningClassChanges[];
extern const size_t kCombiningClassChangesSize;
// code point | first << 21 | second << 42 | (composes again) << 63: one step of the canonical decomposition;
// second is 0 where a single character replaces another. Hangul syllables are computed, not listed.
extern const uint64_t kDecompositions[];
extern const size_t kDecompositionsSize;

}  // namespace moebius::data
