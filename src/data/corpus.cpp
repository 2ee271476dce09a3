#include "data/corpus.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "data/checksum.h"

namespace moebius::data {
namespace {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian and read in place");

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kHeaderBytes = 34;  // magic, version u64, type u8, sequences u64, document indices u64

template <class T>
T load(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void widen(const char* p, int64_t count, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(load<T>(p + i * sizeof(T)));
}

// "corpus a/b.idx: <field> is <found>, expected <expected>; <way out>"
template <class Found, class Expected>
[[noreturn]] void refuse(const std::filesystem::path& file, const char* field, const Found& found,
                         const Expected& expected, const char* way_out) {
  throw_user_error("corpus ", file.string(), ": ", field, " is ", found, ", expected ", expected, "; ",
                   way_out);
}

constexpr const char* kRebuild =
    "the file is damaged or cut short: build the corpus again (moebius data build)";

std::string printable(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += c >= 32 && c < 127 ? c : '.';
  return "'" + text + "'";
}

std::filesystem::path with_suffix(std::filesystem::path prefix, const char* suffix) {
  prefix += suffix;
  return prefix;
}

MappedFile map_part(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw_user_error("corpus ", path.string(),
                     ": there is no such file; build the corpus first (moebius data build)");
  }
  return MappedFile(path);
}

}  // namespace

int64_t size_of(TokenType type) {
  switch (type) {
    case TokenType::uint8:
      return 1;
    case TokenType::uint16:
      return 2;
    case TokenType::int32:
      return 4;
  }
  return 0;
}

const char* name_of(TokenType type) {
  switch (type) {
    case TokenType::uint8:
      return "uint8";
    case TokenType::uint16:
      return "uint16";
    case TokenType::int32:
      return "int32";
  }
  return "unknown";
}

TokenType token_type_for(int64_t vocab_size) {
  return vocab_size < 65500 ? TokenType::uint16 : TokenType::int32;
}

std::filesystem::path bin_path(const std::filesystem::path& prefix) {
  return with_suffix(prefix, ".bin");
}
std::filesystem::path idx_path(const std::filesystem::path& prefix) {
  return with_suffix(prefix, ".idx");
}
std::filesystem::path info_path(const std::filesystem::path& prefix) {
  return with_suffix(prefix, ".json");
}

std::filesystem::path corpus_prefix(const std::filesystem::path& path) {
  const auto extension = path.extension();
  return extension == ".idx" || extension == ".bin" ? std::filesystem::path(path).replace_extension() : path;
}

std::shared_ptr<const Corpus> Corpus::open(const std::filesystem::path& path) {
  auto corpus = std::shared_ptr<Corpus>(new Corpus());
  corpus->prefix_ = corpus_prefix(path);
  corpus->idx_ = map_part(idx_path(corpus->prefix_));
  corpus->bin_ = map_part(bin_path(corpus->prefix_));
  corpus->parse_index();
  corpus->read_info();
  return corpus;
}

void Corpus::parse_index() {
  const auto path = idx_path(prefix_);
  const char* p = idx_.text().data();
  const auto size = static_cast<int64_t>(idx_.size());
  if (size < kHeaderBytes) refuse(path, "its size in bytes", size, "at least 34", kRebuild);
  if (std::string_view(p, kMagic.size()) != kMagic) {
    refuse(path, "the magic", printable({p, kMagic.size()}), printable(kMagic),
           "this is no corpus index: give a .idx written by moebius data build or by Megatron");
  }
  if (const auto version = load<uint64_t>(p + 9); version != 1) {
    refuse(path, "the version", version, 1,
           "it was written by another program or a later version of the format");
  }
  const auto code = load<uint8_t>(p + 17);
  if (code != 1 && code != 4 && code != 8) {
    refuse(path, "the token type code", static_cast<int>(code), "1 (uint8), 4 (int32) or 8 (uint16)",
           "corpora of other types cannot be read: build it again (moebius data build)");
  }
  type_ = static_cast<TokenType>(code);
  const auto num_sequences = load<uint64_t>(p + 18), num_indices = load<uint64_t>(p + 26);
  const uint64_t limit = static_cast<uint64_t>(size);  // keeps the sum below from overflowing
  if (num_sequences > limit || num_indices > limit || num_indices < 1 ||
      kHeaderBytes + 12 * num_sequences + 8 * num_indices != limit) {
    refuse(path, "its size in bytes", size,
           concat("34 + 12 x ", num_sequences, " sequences + 8 x ", num_indices, " document indices"),
           kRebuild);
  }
  num_sequences_ = static_cast<int64_t>(num_sequences);
  num_documents_ = static_cast<int64_t>(num_indices) - 1;
  const char* lengths = p + kHeaderBytes;
  pointers_ = lengths + 4 * num_sequences_;
  document_indices_ = pointers_ + 8 * num_sequences_;

  // One pass over the index: sequences must lie one after the other, so that a token range is a byte range.
  int64_t byte = 0;
  for (int64_t i = 0; i < num_sequences_; ++i) {
    const auto length = load<int32_t>(lengths + 4 * i);
    if (length < 0) refuse(path, concat("the length of sequence ", i).c_str(), length, "0 or more", kRebuild);
    if (const auto pointer = load<int64_t>(pointers_ + 8 * i); pointer != byte) {
      refuse(path, concat("the offset of sequence ", i).c_str(), pointer, byte, kRebuild);
    }
    byte += length * size_of(type_);
  }
  if (static_cast<int64_t>(bin_.size()) != byte) {
    refuse(bin_path(prefix_), "its size in bytes", bin_.size(), byte, kRebuild);
  }
  num_tokens_ = byte / size_of(type_);
  int64_t previous = 0;
  for (int64_t i = 0; i <= num_documents_; ++i) {
    const auto index = load<int64_t>(document_indices_ + 8 * i);
    const int64_t least =
        i == num_documents_ ? num_sequences_ : previous;  // the last is the number of sequences
    const int64_t most = i == 0 ? 0 : num_sequences_;
    if (index < least || index > most) {
      refuse(path, concat("document index ", i).c_str(), index, concat(least, " to ", most), kRebuild);
    }
    previous = index;
  }
  if (num_tokens_ == 0)
    refuse(bin_path(prefix_), "the number of tokens", 0, "at least 1", "build it from more text");
}

void Corpus::read_info() {
  const auto path = info_path(prefix_);
  if (!std::filesystem::exists(path)) return;
  info_ = parse_corpus_info(read_file(path), path);
  const auto compare = [&](const char* field, int64_t expected, int64_t found) {
    if (expected != found) {
      refuse(path, field, expected, concat(found, " (what the .bin and .idx beside it say)"),
             "the three files do not belong together: build the corpus again (moebius data build)");
    }
  };
  compare("bin_bytes", info_->bin_bytes, static_cast<int64_t>(bin_.size()));
  compare("idx_bytes", info_->idx_bytes, static_cast<int64_t>(idx_.size()));
  compare("num_tokens", info_->num_tokens, num_tokens_);
  compare("num_documents", info_->num_documents, num_documents_);
}

int64_t Corpus::sequence_begin(int64_t i) const {
  return i == num_sequences_ ? num_tokens_ : load<int64_t>(pointers_ + 8 * i) / size_of(type_);
}

int64_t Corpus::document_begin(int64_t i) const {
  MOEBIUS_CHECK(i >= 0 && i <= num_documents_, "document ", i, " of ", num_documents_);
  return sequence_begin(load<int64_t>(document_indices_ + 8 * i));
}

int64_t Corpus::document_at(int64_t t) const {
  MOEBIUS_CHECK(t >= 0 && t < num_tokens_, "token ", t, " of ", num_tokens_);
  int64_t low = 0, high = num_documents_;  // document_begin(low) <= t < document_begin(high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (document_begin(middle) <= t ? low : high) = middle;
  }
  return low;
}

void Corpus::read(TokenRange range, int64_t vocab_size, std::vector<int32_t>& out) const {
  MOEBIUS_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= num_tokens_, "tokens [",
                range.begin, ", ", range.end, ") of ", num_tokens_);
  const size_t at = out.size();
  const int64_t count = range.size();
  out.resize(at + count);
  const char* p = bin_.text().data() + range.begin * size_of(type_);
  switch (type_) {
    case TokenType::uint8:
      widen<uint8_t>(p, count, out.data() + at);
      break;
    case TokenType::uint16:
      widen<uint16_t>(p, count, out.data() + at);
      break;
    case TokenType::int32:
      widen<int32_t>(p, count, out.data() + at);
      break;
  }
  const auto is_bad = [&](int32_t id) { return id < 0 || id >= vocab_size; };
  const auto bad = std::find_if(out.begin() + at, out.end(), is_bad);
  if (bad != out.end()) {
    throw_user_error(
        "corpus ", bin_path(prefix_).string(), ": token ", range.begin + (bad - out.begin() - at), " is ",
        *bad, ", expected 0 to ", vocab_size - 1,
        "; the corpus was made with another tokenizer, or the file is damaged (moebius data inspect "
        "--verify)");
  }
}

void Corpus::verify() const {
  if (!info_) {
    throw_user_error("corpus ", prefix_.string(), ": there is no ", info_path(prefix_).string(),
                     " with checksums to verify against; build the corpus with moebius data build");
  }
  const auto compare = [&](const MappedFile& file, const std::filesystem::path& path,
                           const std::string& expected) {
    const std::string found = checksum_of(file.text());
    if (found != expected) refuse(path, "its checksum", found, expected, kRebuild);
  };
  compare(idx_, idx_path(prefix_), info_->idx_checksum);
  compare(bin_, bin_path(prefix_), info_->bin_checksum);
  std::vector<int32_t> ids;
  constexpr int64_t kChunk = 1 << 20;
  for (int64_t t = 0; t < num_tokens_; t += kChunk) {
    ids.clear();
    read({t, std::min(t + kChunk, num_tokens_)}, info_->vocab_size, ids);
  }
}

}  // namespace moebius::data
