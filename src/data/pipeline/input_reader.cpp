#include "data/pipeline/input_reader.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/units.h"
#include "data/checksum.h"
#include "data/pipeline/parquet_text.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBatchBytes = 1 << 20;
// JSON of more cannot be held twice on a usual machine, and simdjson ends at 4 GiB.
constexpr size_t kMaxLineBytes = size_t{1} << 30;

constexpr const char* kReadUpToThere = "; mend it, or read up to there (moebius data build --on-error skip)";

// One past the last line feed of `text`; 0 when there is none.
size_t end_of_lines(std::string_view text) {
  const size_t last = text.rfind('\n');
  return last == std::string_view::npos ? 0 : last + 1;
}

}  // namespace

const char* name_of(DocumentSplit split) {
  return split == DocumentSplit::line ? "line" : "file";
}

InputKind kind_of(const fs::path& file, DocumentSplit split) {
  fs::path name = file.filename();
  if (name.extension() == ".gz" || name.extension() == ".zst" || name.extension() == ".zstd")
    name = name.stem();
  const fs::path extension = name.extension();
  if (extension == ".parquet") return InputKind::parquet;
  if (extension == ".jsonl" || extension == ".ndjson" || extension == ".json") return InputKind::json_lines;
  return split == DocumentSplit::line ? InputKind::text_lines : InputKind::whole_text;
}

InputReader::InputReader(const std::vector<fs::path>& files, DocumentSplit split, const std::string& column,
                         const InputPosition& start)
    : files_(files), split_(split), column_(column), file_(start.file), skip_bytes_(start.byte) {}

bool InputReader::next(InputBatch& batch) {
  if (file_ >= static_cast<int64_t>(files_.size())) return false;
  if (!map_) open_file();
  batch = {};
  batch.file = file_;
  batch.kind = kind_of(files_[static_cast<size_t>(file_)], split_);
  if (batch.kind == InputKind::parquet) {
    read_rows(batch);
  } else if (batch.kind == InputKind::whole_text) {
    read_whole(batch);
  } else if (compression_ == Compression::none) {
    cut_mapped_lines(batch);
  } else {
    read_lines(batch);
  }
  if (batch.kind != InputKind::parquet) batch.advance = static_cast<int64_t>(batch.text.size());
  is_empty_ = is_empty_ && batch.text.empty();
  if (!batch.problem.empty()) batch.way_out = kReadUpToThere;
  if (batch.ends_file && is_empty_ && batch.problem.empty()) {
    batch.problem = "the file is empty";
    batch.way_out = "; give a text file with some text in it";
  }
  const bool is_parquet = batch.kind == InputKind::parquet;
  const size_t position = batch.ends_file ? map_->size()
                          : is_parquet    ? hashed_
                          : source_       ? source_->position()
                                          : at_;
  hasher_.update(map_->text().substr(hashed_, position - hashed_));
  hashed_ = position;
  batch.position = static_cast<int64_t>(position);
  if (batch.ends_file) end_file(batch);
  return true;
}

void InputReader::open_file() {
  map_ = std::make_shared<const MappedFile>(files_[static_cast<size_t>(file_)]);
  map_->advise(MappedFile::Access::kSequential);
  const bool is_parquet = kind_of(map_->path(), split_) == InputKind::parquet;
  compression_ = is_parquet ? Compression::none : compression_of(map_->text(), map_->path());
  source_ = compression_ == Compression::none ? nullptr : open_bytes(map_->text(), compression_);
  at_ = 0;
  hashed_ = 0;
  carry_.clear();
  hasher_.reset();
  is_empty_ = skip_bytes_ == 0;
  if (is_parquet) {
    at_ = static_cast<size_t>(std::exchange(skip_bytes_, 0));
  } else {
    skip(std::exchange(skip_bytes_, 0));
  }
}

void InputReader::skip(int64_t num_bytes) {
  if (num_bytes == 0) return;
  if (!source_) {
    MOEBIUS_CHECK_LE(num_bytes, static_cast<int64_t>(map_->size()));
    at_ = static_cast<size_t>(num_bytes);
  } else {
    std::string buffer(kBatchBytes, '\0');
    while (num_bytes > 0) {
      const size_t count =
          source_->read(buffer.data(), std::min(buffer.size(), static_cast<size_t>(num_bytes)));
      MOEBIUS_CHECK(count > 0, map_->path().string(), " ended ", num_bytes, " bytes too early");
      num_bytes -= static_cast<int64_t>(count);
    }
  }
  const size_t position = source_ ? source_->position() : at_;
  hasher_.update(map_->text().substr(0, position));
  hashed_ = position;
}

void InputReader::end_file(InputBatch& batch) {
  batch.checksum = checksum_text(hasher_.digest());
  if (!batch.owner) batch.owner = map_;
  map_.reset();
  source_.reset();
  ++file_;
}

void InputReader::read_whole(InputBatch& batch) {
  batch.ends_file = true;
  if (compression_ == Compression::none) {
    batch.text = map_->text();
    return;
  }
  auto text = std::make_shared<std::string>();
  try {
    while (true) {
      const size_t size = text->size();
      text->resize(std::max(2 * size, kBatchBytes));
      const size_t count = source_->read(text->data() + size, text->size() - size);
      text->resize(size + count);
      if (count == 0) break;
    }
    batch.text = *text;
    batch.owner = std::move(text);
  } catch (const DamagedInput& damage) {
    batch.problem = damage.what();  // a part of a document is none
  }
}

// A row group a batch. The file counts as used when all of it is read.
void InputReader::read_rows(InputBatch& batch) {
  auto text = std::make_shared<std::string>();
  batch.ends_file = true;
  batch.advance = 1;
  if (map_->size() == 0) return;
  try {
    const ParquetText rows(map_->text(), column_);
    const auto group = static_cast<int64_t>(at_);
    if (group < rows.num_row_groups()) rows.read(group, *text, batch.ends);
    batch.ends_file = group + 1 >= rows.num_row_groups();
    ++at_;
  } catch (const DamagedInput& damage) {
    text->clear();
    batch.ends.clear();
    batch.problem = damage.what();
  }
  batch.text = *text;
  batch.owner = std::move(text);
}

void InputReader::cut_mapped_lines(InputBatch& batch) {
  const std::string_view rest = map_->text().substr(at_);
  size_t size = rest.size();
  if (size > kBatchBytes) {
    size = end_of_lines(rest.substr(0, kBatchBytes));
    if (size == 0) size = std::min(rest.find('\n', kBatchBytes), rest.size() - 1) + 1;
  }
  batch.text = rest.substr(0, size);
  batch.owner = map_;
  at_ += size;
  batch.ends_file = at_ == map_->size();
}

void InputReader::read_lines(InputBatch& batch) {
  auto text = std::make_shared<std::string>(std::move(carry_));
  carry_.clear();
  size_t whole = 0;  // bytes of whole lines
  while (whole == 0 && !batch.ends_file) {
    const size_t size = text->size();
    text->resize(size + std::max(kBatchBytes, size));
    size_t count = 0;
    try {
      count = source_->read(text->data() + size, text->size() - size);
      batch.ends_file = count == 0;
    } catch (const DamagedInput& damage) {
      batch.problem = damage.what();
      batch.ends_file = true;
    }
    text->resize(size + count);
    const size_t lines = end_of_lines(std::string_view(*text).substr(size));
    if (lines > 0) whole = size + lines;
    if (whole == 0 && text->size() > kMaxLineBytes) {
      batch.problem = concat("a line is longer than ", format_bytes(kMaxLineBytes));
      batch.ends_file = true;
    }
  }
  if (batch.ends_file && batch.problem.empty()) whole = text->size();  // the last line has no line feed
  if (!batch.ends_file) carry_ = text->substr(whole);
  text->resize(whole);
  batch.text = *text;
  batch.owner = std::move(text);
}

}  // namespace moebius::data
