// Where an unfinished corpus build stands: a small file in its work folder, replaced whenever what it counts
// is durable, so that a build that was killed at any moment goes on from there with the same result.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/corpus_writer.h"
#include "data/pipeline/input_reader.h"

namespace moebius::data {

// What each stage has done. Functions of input and settings alone, whatever the number of threads.
struct BuildCounters {
  int64_t files = 0, input_bytes = 0;                               // read, as they are on disk
  int64_t bytes = 0;                                                // decompressed
  int64_t records = 0;                                              // documents and JSON lines found
  int64_t bad_records = 0, bad_files = 0;                           // left out because they could not be read
  int64_t empty = 0, too_short = 0, too_long = 0, unprintable = 0;  // dropped by the filter
  int64_t exact_duplicates = 0, near_duplicates = 0;
  int64_t documents = 0, text_bytes = 0;  // kept
  int64_t tokens = 0;

  static constexpr size_t kNumFields = 15;
  // (name, value) in the order of the stages.
  std::array<std::pair<const char*, int64_t*>, kNumFields> fields();
};

struct BuildJournal {
  std::string recipe;  // what the result is a function of; another one starts anew
  InputPosition position;
  CorpusMark corpus;
  int64_t fingerprint_bytes = 0;
  BuildCounters counters;
  std::vector<std::string> checksums;  // of the files that are done
  std::vector<std::string> problems;   // the first of them
};

void write_journal(const BuildJournal& journal, const std::filesystem::path& folder);
// None when there is none, when it is of another recipe or damaged.
std::optional<BuildJournal> read_journal(const std::filesystem::path& folder, const std::string& recipe);

}  // namespace moebius::data
