// Input files one after the other, decompressed and cut into batches of whole records.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "data/corpus.h"
#include "data/pipeline/byte_source.h"

namespace moebius::data {

// What one document is, in text that is not JSON.
enum class DocumentSplit { file, line };
const char* name_of(DocumentSplit split);

enum class InputKind { whole_text, text_lines, json_lines, parquet };
// By the name without a compression's ending: .jsonl, .ndjson and .json hold one JSON object a line, .parquet
// is Apache Parquet, all else is text.
InputKind kind_of(const std::filesystem::path& file, DocumentSplit split);

// Where reading goes on: the next record's file, its byte in that file decompressed (Parquet: its row group),
// and its line (row) from 0.
struct InputPosition {
  int64_t file = 0, byte = 0, line = 0;
};

struct InputBatch {
  int64_t file = 0;
  InputKind kind = InputKind::whole_text;
  std::string_view text;       // whole records: a document, or lines
  std::vector<uint64_t> ends;  // of the rows of a Parquet file in `text`
  int64_t advance = 0;         // of InputPosition::byte
  bool ends_file = false;
  std::string problem;   // why the rest of the file cannot be read; empty when it can
  std::string way_out;   // what to do about it
  int64_t position = 0;  // bytes of the file as it is on disk that have been used so far; at its end: all
  std::string checksum;  // of the file as it is on disk; at its end
  std::shared_ptr<const void> owner;  // of `text`
};

// One thread at a time.
class InputReader {
 public:
  // The files exist. `start` is the end of some batch of an earlier reader of the same files.
  // `column`: of Parquet files.
  InputReader(const std::vector<std::filesystem::path>& files, DocumentSplit split, const std::string& column,
              const InputPosition& start = {});
  // False when all files are read. UserError when a file cannot be opened.
  bool next(InputBatch& batch);

 private:
  void open_file();
  void skip(int64_t num_bytes);
  void read_whole(InputBatch& batch);
  void cut_mapped_lines(InputBatch& batch);
  void read_lines(InputBatch& batch);
  void read_rows(InputBatch& batch);
  void end_file(InputBatch& batch);

  const std::vector<std::filesystem::path>& files_;
  const DocumentSplit split_;
  const std::string column_;
  int64_t file_, skip_bytes_;
  std::shared_ptr<const MappedFile> map_;
  Compression compression_ = Compression::none;
  std::unique_ptr<ByteSource> source_;
  size_t at_ = 0;         // uncompressed lines: begin of the next batch
  std::string carry_;     // of compressed lines: the begin of a line
  size_t hashed_ = 0;     // bytes of the file in hasher_
  bool is_empty_ = true;  // nothing was read of the file yet
  Hasher hasher_;
};

}  // namespace moebius::data
