#include "data/corpus_builder.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string_view>
#include <system_error>

#include "base/check.h"
#include "base/error.h"
#include "base/parallel.h"
#include "data/checksum.h"
#include "data/text.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxSequence = std::numeric_limits<int32_t>::max();
constexpr size_t kTaskBytes = 256 << 10;  // text that one thread encodes at a time

template <class T>
void append_value(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <class T>
void narrow(std::span<const int32_t> tokens, std::vector<char>& out) {
  out.resize(tokens.size() * sizeof(T));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto value = static_cast<T>(tokens[i]);
    MOEBIUS_CHECK_EQ(static_cast<int32_t>(value), tokens[i]);
    std::memcpy(out.data() + i * sizeof(T), &value, sizeof(T));
  }
}

SourceFile describe_file(const fs::path& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) throw_user_error(path.string(), ": ", std::strerror(errno));
  return {fs::absolute(path).lexically_normal().string(), static_cast<int64_t>(status.st_size),
          status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec, ""};
}

class Builder {
 public:
  explicit Builder(const CorpusBuild& build)
      : build_(build), writer_(build.prefix, token_type_for(build.tokenizer->vocab_size())) {
    for (const auto& file : build.files) total_bytes_ += static_cast<int64_t>(fs::file_size(file));
  }

  void run() {
    CorpusInfo info;
    info.tokenizer = build_.tokenizer->name();
    info.tokenizer_fingerprint = build_.tokenizer->fingerprint();
    info.vocab_size = build_.tokenizer->vocab_size();
    info.split = name_of(build_.split);
    info.text_bytes = total_bytes_;
    for (const auto& path : build_.files) {
      info.sources.push_back(describe_file(path));
      const MappedFile file(path);
      file.advise(MappedFile::Access::kSequential);
      const std::string_view text = file.text();
      check_text(text, path.string());
      info.sources.back().checksum = checksum_of(text);
      if (build_.split == DocumentSplit::line) {
        add_lines(text);
      } else {
        add_document(text);
      }
      flush();  // before the text is unmapped
    }
    writer_.finish(std::move(info));
  }

 private:
  // A document or, where the tokenizer allows, a part of one.
  struct Piece {
    std::string_view text;
    bool starts_document, ends_document;
  };
  // Neighbouring pieces that one thread encodes.
  struct Task {
    size_t first = 0, last = 0;
    std::vector<int32_t> ids;
    std::vector<size_t> piece_ends;  // in ids
  };

  void add_lines(std::string_view text) {
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size());
      if (end > 0) add_document(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
  }

  void add_document(std::string_view text) {
    bool starts = true;
    while (text.size() > kTaskBytes) {
      const size_t cut = build_.tokenizer->split_point(text, kTaskBytes);
      if (cut >= text.size()) break;
      add_piece({text.substr(0, cut), starts, false});
      starts = false;
      text.remove_prefix(cut);
    }
    add_piece({text, starts, true});
  }

  void add_piece(Piece piece) {
    pieces_.push_back(piece);
    waiting_bytes_ += piece.text.size();
    if (waiting_bytes_ >= kTaskBytes * 4 * static_cast<size_t>(num_threads())) flush();
  }

  // Encodes the waiting pieces in parallel and writes them in order.
  void flush() {
    std::vector<Task> tasks;
    for (size_t i = 0; i < pieces_.size();) {
      Task& task = tasks.emplace_back();
      task.first = i;
      for (size_t bytes = 0; i < pieces_.size() && bytes < kTaskBytes; ++i) bytes += pieces_[i].text.size();
      task.last = i;
    }
    const Tokenizer& tokenizer = *build_.tokenizer;
    parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t t, int64_t) {
      Task& task = tasks[t];
      for (size_t i = task.first; i < task.last; ++i) {
        if (pieces_[i].starts_document) {
          tokenizer.encode(pieces_[i].text, task.ids);
        } else {
          tokenizer.encode_continued(pieces_[i].text, task.ids);
        }
        if (pieces_[i].ends_document && tokenizer.document_end_id() >= 0) {
          task.ids.push_back(tokenizer.document_end_id());
        }
        task.piece_ends.push_back(task.ids.size());
      }
    });
    for (const Task& task : tasks) {
      size_t begin = 0;
      for (size_t i = task.first; i < task.last; ++i) {
        const size_t end = task.piece_ends[i - task.first];
        writer_.add(std::span(task.ids).subspan(begin, end - begin));
        if (pieces_[i].ends_document) writer_.end_document();
        begin = end;
      }
    }
    done_bytes_ += static_cast<int64_t>(waiting_bytes_);
    waiting_bytes_ = 0;
    pieces_.clear();
    if (build_.progress) build_.progress(std::min(done_bytes_, total_bytes_), total_bytes_);
  }

  const CorpusBuild& build_;
  CorpusWriter writer_;
  std::vector<Piece> pieces_;
  size_t waiting_bytes_ = 0;
  int64_t done_bytes_ = 0, total_bytes_ = 0;
};

void check_files(const CorpusBuild& build) {
  if (build.files.empty())
    throw_user_error("no text file was given to build a corpus from; name at least one");
  for (const auto& file : build.files) {
    if (!fs::exists(file)) throw_user_error(file.string(), ": there is no such file; check the path");
    if (!fs::is_regular_file(file)) {
      throw_user_error(file.string(), ": this is not a file; name the text files in it one by one");
    }
  }
}

}  // namespace

const char* name_of(DocumentSplit split) {
  return split == DocumentSplit::line ? "line" : "file";
}

CorpusWriter::CorpusWriter(const fs::path& prefix, TokenType type)
    : prefix_(prefix), type_(type), bin_(bin_path(prefix)) {}

void CorpusWriter::add(std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    if (sequence_tokens_ == kMaxSequence) end_sequence();
    const auto part = tokens.first(std::min<size_t>(tokens.size(), kMaxSequence - sequence_tokens_));
    switch (type_) {
      case TokenType::uint8:
        narrow<uint8_t>(part, buffer_);
        break;
      case TokenType::uint16:
        narrow<uint16_t>(part, buffer_);
        break;
      case TokenType::int32:
        narrow<int32_t>(part, buffer_);
        break;
    }
    bin_.write(buffer_.data(), buffer_.size());
    bin_hash_.update(buffer_.data(), buffer_.size());
    sequence_tokens_ += static_cast<int64_t>(part.size());
    num_tokens_ += static_cast<int64_t>(part.size());
    tokens = tokens.subspan(part.size());
  }
}

void CorpusWriter::end_sequence() {
  lengths_.push_back(static_cast<int32_t>(sequence_tokens_));
  sequence_tokens_ = 0;
}

void CorpusWriter::end_document() {
  end_sequence();
  document_indices_.push_back(static_cast<int64_t>(lengths_.size()));
}

void CorpusWriter::finish(CorpusInfo info) {
  MOEBIUS_CHECK_EQ(sequence_tokens_, 0, "the last document was not ended");
  std::string index("MMIDIDX\0\0", 9);
  append_value<uint64_t>(index, 1);
  append_value<uint8_t>(index, static_cast<uint8_t>(type_));
  append_value<uint64_t>(index, lengths_.size());
  append_value<uint64_t>(index, document_indices_.size());
  for (const int32_t length : lengths_) append_value<int32_t>(index, length);
  int64_t byte = 0;
  for (const int32_t length : lengths_) {
    append_value<int64_t>(index, byte);
    byte += length * size_of(type_);
  }
  for (const int64_t i : document_indices_) append_value<int64_t>(index, i);

  info.num_tokens = num_tokens_;
  info.num_documents = static_cast<int64_t>(document_indices_.size()) - 1;
  info.bin_bytes = byte;
  info.bin_checksum = checksum_text(bin_hash_.digest());
  info.idx_bytes = static_cast<int64_t>(index.size());
  info.idx_checksum = checksum_of(index);

  std::error_code ignored;
  fs::remove(info_path(prefix_), ignored);
  bin_.commit();
  write_file_atomic(idx_path(prefix_), index);
  write_file_atomic(info_path(prefix_), to_json(info));
}

void build_corpus(const CorpusBuild& build) {
  check_files(build);
  remove_stale_temporaries(fs::absolute(build.prefix).parent_path());
  Builder(build).run();
}

bool corpus_is_current(const CorpusBuild& build) {
  check_files(build);
  std::shared_ptr<const Corpus> corpus;
  try {
    if (!fs::exists(info_path(build.prefix))) return false;
    corpus = Corpus::open(build.prefix);
  } catch (const UserError&) {
    return false;  // damaged or of another version: made again
  }
  const CorpusInfo& info = *corpus->info();
  if (info.tokenizer_fingerprint != build.tokenizer->fingerprint() || info.split != name_of(build.split) ||
      info.sources.size() != build.files.size()) {
    return false;
  }
  for (size_t i = 0; i < build.files.size(); ++i) {
    const SourceFile now = describe_file(build.files[i]);
    const SourceFile& then = info.sources[i];
    if (now.path != then.path || now.bytes != then.bytes) return false;
    if (now.modified_ns != then.modified_ns) {
      const MappedFile file(build.files[i]);
      if (checksum_of(file.text()) != then.checksum) return false;
    }
  }
  return true;
}

}  // namespace moebius::data
