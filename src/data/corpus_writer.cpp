#include "data/corpus_writer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <system_error>

#include "base/check.h"
#include "data/checksum.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxSequence = std::numeric_limits<int32_t>::max();

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

}  // namespace

fs::path work_folder(const fs::path& prefix) {
  return fs::absolute(prefix).parent_path() / ("." + prefix.filename().string() + ".building");
}

CorpusWriter::CorpusWriter(const fs::path& prefix, TokenType type, const CorpusMark& mark)
    : prefix_(prefix),
      folder_(work_folder(prefix)),
      type_(type),
      tokens_(folder_ / "tokens", mark.token_bytes),
      borders_(folder_ / "borders", mark.border_bytes) {
  if (mark.border_bytes > 0) read_back(mark);
}

CorpusWriter::~CorpusWriter() {
  std::error_code ignored;
  if (!keeps_folder_) fs::remove_all(folder_, ignored);
}

void CorpusWriter::read_back(const CorpusMark& mark) {
  const MappedFile tokens(folder_ / "tokens"), borders(folder_ / "borders");
  hash_.update(tokens.text());
  const auto count = static_cast<size_t>(mark.border_bytes) / sizeof(int64_t);
  for (size_t i = 0; i < count; ++i) {
    int64_t border;
    std::memcpy(&border, borders.bytes().data() + i * sizeof border, sizeof border);
    lengths_.push_back(static_cast<int32_t>(border / 2));
    num_tokens_ += border / 2;
    if (border % 2 == 1) document_indices_.push_back(static_cast<int64_t>(lengths_.size()));
  }
  MOEBIUS_CHECK_EQ(num_tokens_ * size_of(type_), mark.token_bytes);
}

void CorpusWriter::add(std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    if (sequence_tokens_ == kMaxSequence) end_sequence(false);
    const auto room = static_cast<size_t>(kMaxSequence - sequence_tokens_);
    const auto part = tokens.first(std::min(tokens.size(), room));
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
    tokens_.write(buffer_.data(), buffer_.size());
    hash_.update(buffer_.data(), buffer_.size());
    sequence_tokens_ += static_cast<int64_t>(part.size());
    num_tokens_ += static_cast<int64_t>(part.size());
    tokens = tokens.subspan(part.size());
  }
}

void CorpusWriter::end_sequence(bool ends_document) {
  const int64_t border = 2 * sequence_tokens_ + (ends_document ? 1 : 0);
  borders_.write(&border, sizeof border);
  lengths_.push_back(static_cast<int32_t>(sequence_tokens_));
  sequence_tokens_ = 0;
}

void CorpusWriter::end_document() {
  end_sequence(true);
  document_indices_.push_back(static_cast<int64_t>(lengths_.size()));
}

CorpusMark CorpusWriter::sync() {
  MOEBIUS_CHECK_EQ(sequence_tokens_, 0, "the last document was not ended");
  tokens_.sync();
  borders_.sync();
  return {tokens_.num_bytes(), borders_.num_bytes()};
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
  info.bin_checksum = checksum_text(hash_.digest());
  info.idx_bytes = static_cast<int64_t>(index.size());
  info.idx_checksum = checksum_of(index);

  tokens_.sync();  // a full disk is met before anything is replaced
  std::error_code ignored;
  fs::remove(info_path(prefix_), ignored);
  tokens_.publish(bin_path(prefix_));
  write_file_atomic(idx_path(prefix_), index);
  write_file_atomic(info_path(prefix_), to_json(info));
  keeps_folder_ = false;
}

}  // namespace moebius::data
