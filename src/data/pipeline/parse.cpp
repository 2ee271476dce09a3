#include "data/pipeline/parse.h"

#include <algorithm>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/text_file.h"
#include "data/text.h"

namespace moebius::data {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

bool is_unprintable(uint32_t c) {
  if (c < 0x20) return c != '\t' && c != '\n' && c != '\r';
  if (c < 0x7F) return false;
  return c < 0xA0 || c == 0xFFFD || (c >= 0xE000 && c <= 0xF8FF) || c >= 0xF0000 || (c & 0xFFFE) == 0xFFFE ||
         (c >= 0xFDD0 && c <= 0xFDEF);
}

// Reads the character at the front of well-formed UTF-8 and removes it.
uint32_t take_character(std::string_view& text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t lead = byte(0);
  const size_t size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint32_t c = size == 1 ? lead : lead & (0x7Fu >> size);
  for (size_t i = 1; i < size; ++i) c = (c << 6) | (byte(i) & 0x3F);
  text.remove_prefix(size);
  return c;
}

}  // namespace

const char* name_of(Duplicates duplicates) {
  switch (duplicates) {
    case Duplicates::keep:
      return "keep";
    case Duplicates::exact:
      return "exact";
    case Duplicates::near:
      break;
  }
  return "near";
}

CharacterCounts count_characters(std::string_view text) {
  CharacterCounts counts;
  while (!text.empty()) {
    // Most text is ASCII.
    size_t ascii = 0;
    for (; ascii < text.size(); ++ascii) {
      const auto byte = static_cast<unsigned char>(text[ascii]);
      if (byte >= 0x80) break;
      counts.unprintable += is_unprintable(byte);
    }
    counts.characters += static_cast<int64_t>(ascii);
    text.remove_prefix(ascii);
    if (text.empty()) break;
    ++counts.characters;
    counts.unprintable += is_unprintable(take_character(text));
  }
  return counts;
}

BatchParser::BatchParser(std::string text_field, const DocumentFilter& filter, Duplicates duplicates,
                         std::unique_ptr<LineDecoder> decoder)
    : text_field_(std::move(text_field)),
      json_(text_field_),
      decoder_(std::move(decoder)),
      filter_(filter),
      duplicates_(duplicates) {}

std::unique_ptr<ParsedBatch> BatchParser::parse(InputBatch input, const std::string& name) {
  auto batch = std::make_unique<ParsedBatch>();
  std::string_view text = input.text;
  batch->input = std::move(input);
  if (batch->input.kind == InputKind::whole_text) {
    if (!batch->input.problem.empty()) return batch;  // empty, or a part of a document
    batch->num_records = 1;
    try {
      check_text(text, name);
      add_document(text, *batch);
    } catch (const UserError& error) {
      batch->problems.push_back({-1, error.what(), {}});
    }
    return batch;
  }
  if (batch->input.kind == InputKind::parquet) {
    add_rows(name, *batch);
    return batch;
  }
  // What JSON spells is never longer than its spelling, so that no text moves while others are added.
  if (batch->input.kind == InputKind::json_lines) batch->decoded.reserve(text.size());
  const bool is_decoded = decoder_ && batch->input.kind == InputKind::json_lines &&
                          text.size() < (1ull << 32) && kernel_supports_field(text_field_);
  if (is_decoded) decoder_->decode(text, text_field_, lines_);
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (!is_decoded || !add_decoded(static_cast<size_t>(batch->num_lines), *batch))
      add_line(text.substr(0, end), name, *batch);
    ++batch->num_lines;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return batch;
}

void BatchParser::add_rows(const std::string& name, ParsedBatch& batch) {
  uint64_t begin = 0;
  for (const uint64_t end : batch.input.ends) {
    const std::string_view text = batch.input.text.substr(begin, end - begin);
    begin = end;
    ++batch.num_records;
    try {
      if (!text.empty()) check_text(text, name);
      add_document(text, batch);
    } catch (const UserError& error) {
      batch.problems.push_back({batch.num_lines, std::string(error.what()).substr(name.size() + 2), {}});
    }
    ++batch.num_lines;
  }
}

bool BatchParser::add_decoded(size_t i, ParsedBatch& batch) {
  if (lines_.status[i] == DecodedLines::Status::for_host) return false;
  if (lines_.status[i] == DecodedLines::Status::blank) return true;
  ++batch.num_records;
  const size_t from = i == 0 ? 0 : lines_.line_end[i - 1], begin = batch.decoded.size();
  batch.decoded.append(lines_.text, from, lines_.line_end[i] - from);
  add_document(std::string_view(batch.decoded).substr(begin), batch);
  return true;
}

void BatchParser::add_line(std::string_view line, const std::string& name, ParsedBatch& batch) {
  if (batch.input.kind == InputKind::text_lines) {
    if (line.empty()) return;
    ++batch.num_records;
    try {
      check_text(line, name);
      add_document(line, batch);
    } catch (const UserError& error) {  // "NAME: what": the line is put between by the one who counts lines
      batch.problems.push_back({batch.num_lines, std::string(error.what()).substr(name.size() + 2), {}});
    }
    return;
  }
  if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  if (is_blank(line)) return;
  ++batch.num_records;
  std::string problem;
  const std::string_view text = json_.find(line, problem);
  if (!problem.empty()) {
    batch.problems.push_back(
        {batch.num_lines, concat(problem, ": ", shown_text(line)),
         "; mend the line, or leave such lines out (moebius data build --on-error skip)"});
    return;
  }
  const size_t begin = batch.decoded.size();
  MOEBIUS_CHECK_LE(begin + text.size(), batch.decoded.capacity());
  batch.decoded += text;
  add_document(std::string_view(batch.decoded).substr(begin), batch);
}

void BatchParser::add_document(std::string_view text, ParsedBatch& batch) const {
  ParsedDocument& document = batch.documents.emplace_back();
  document.text = text;
  document.verdict = judge(text);
  if (document.verdict != Verdict::kept || duplicates_ == Duplicates::keep) return;
  document.exact = hash64(text);
  if (duplicates_ != Duplicates::near) return;
  document.signature = static_cast<int64_t>(batch.signatures.size());
  batch.signatures.push_back(signature_of(text));
}

Verdict BatchParser::judge(std::string_view text) const {
  if (text.empty()) return Verdict::empty;
  if (!filter_.looks_at_characters()) return Verdict::kept;
  const CharacterCounts counts = count_characters(text);
  if (counts.characters < filter_.min_chars) return Verdict::too_short;
  if (filter_.max_chars > 0 && counts.characters > filter_.max_chars) return Verdict::too_long;
  const auto printable = static_cast<double>(counts.characters - counts.unprintable);
  return printable < filter_.min_printable * static_cast<double>(counts.characters) ? Verdict::unprintable
                                                                                    : Verdict::kept;
}

}  // namespace moebius::data
