// From a batch of input to documents: JSON, validity, filters, and what duplicates are told by.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/decode/line_decoder.h"
#include "data/pipeline/input_reader.h"
#include "data/pipeline/json_text.h"
#include "data/pipeline/near_duplicates.h"

namespace moebius::data {

// Which documents are kept; everything by default.
struct DocumentFilter {
  int64_t min_chars = 0;     // fewer Unicode characters: dropped
  int64_t max_chars = 0;     // more: dropped; 0: no limit
  double min_printable = 0;  // smaller share of characters that are neither controls (tab and line ends are
                             // fine), nor U+FFFD, nor private or without meaning: dropped
  bool looks_at_characters() const { return min_chars > 0 || max_chars > 0 || min_printable > 0; }
};

enum class Duplicates { keep, exact, near };
const char* name_of(Duplicates duplicates);

enum class Verdict : uint8_t { kept, empty, too_short, too_long, unprintable };

struct ParsedDocument {
  std::string_view text;
  Verdict verdict = Verdict::kept;
  uint64_t exact = 0;      // of the text, when duplicates are looked for
  int64_t signature = -1;  // in signatures
};

// A record that cannot be used.
struct RecordProblem {
  int64_t line = -1;  // in the batch, from 0; -1: the file as a whole, which the message names
  std::string message, way_out;
};

struct ParsedBatch {
  InputBatch input;
  std::vector<ParsedDocument> documents;
  std::vector<Signature> signatures;
  std::vector<RecordProblem> problems;
  int64_t num_lines = 0, num_records = 0;
  std::string decoded;  // texts that JSON spelled differently
};

struct CharacterCounts {
  int64_t characters = 0, unprintable = 0;
};
// `text` is well-formed UTF-8.
CharacterCounts count_characters(std::string_view text);

// One per thread. The result depends on the batch alone.
class BatchParser {
 public:
  // `decoder`, when given, reads JSON lines as far as it can; the host reads the others.
  BatchParser(std::string text_field, const DocumentFilter& filter, Duplicates duplicates,
              std::unique_ptr<LineDecoder> decoder = nullptr);
  // `name`: the file's, for messages.
  std::unique_ptr<ParsedBatch> parse(InputBatch input, const std::string& name);

 private:
  void add_rows(const std::string& name, ParsedBatch& batch);
  void add_line(std::string_view line, const std::string& name, ParsedBatch& batch);
  // What the decoder made of line `i`; false when the host has to read it.
  bool add_decoded(size_t i, ParsedBatch& batch);
  void add_document(std::string_view text, ParsedBatch& batch) const;
  Verdict judge(std::string_view text) const;

  std::string text_field_;
  JsonText json_;
  std::unique_ptr<LineDecoder> decoder_;
  DecodedLines lines_;  // of the batch, by the decoder
  DocumentFilter filter_;
  Duplicates duplicates_;
};

}  // namespace moebius::data
