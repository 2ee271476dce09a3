// Lists of document lengths: what `moebius data plan` and `stats` look at.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/corpus.h"

namespace moebius::data {

// One whole number per line, in tokens; empty lines are passed over, 0 is an empty document. The file may be
// compressed with gzip. UserError naming file and line for anything else, for a damaged or cut-off file, and
// when there is no number at all.
std::vector<int64_t> read_lengths(const std::filesystem::path& file);

std::vector<int64_t> lengths_of(const Corpus& corpus);

// Documents with from <= length < to.
struct LengthClass {
  int64_t from = 0, to = 0;
  int64_t documents = 0, tokens = 0;
};

struct LengthSummary {
  int64_t documents = 0, empty_documents = 0, tokens = 0;
  int64_t shortest = 0, median = 0, p90 = 0, p99 = 0, longest = 0;  // of those that have tokens
  std::vector<LengthClass> classes;  // powers of two, from the shortest to the longest
};
LengthSummary summarize(const std::vector<int64_t>& lengths);

}  // namespace moebius::data
