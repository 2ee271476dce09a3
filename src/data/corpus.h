// A tokenized corpus on disk: PREFIX.bin (token ids), PREFIX.idx (borders), PREFIX.json (where it comes
// from). The first two are Megatron-Core's IndexedDataset, byte for byte; docs/formats/corpus.md describes
// all three.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"

namespace moebius::data {

struct TokenRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const TokenRange&) const = default;
};

// Type of a token in the .bin, with Megatron's code.
enum class TokenType : uint8_t { uint8 = 1, int32 = 4, uint16 = 8 };
int64_t size_of(TokenType type);
const char* name_of(TokenType type);
// uint16 below 65,500 ids, else int32 (Megatron's rule).
TokenType token_type_for(int64_t vocab_size);

// One text file that went into a corpus.
struct SourceFile {
  std::string path;  // absolute
  int64_t bytes = 0;
  int64_t modified_ns = 0;
  std::string checksum;  // "xxh3-64:…" of the content
  bool operator==(const SourceFile&) const = default;
};

// The sidecar PREFIX.json. Corpora made by other programs have none.
struct CorpusInfo {
  std::string tokenizer, tokenizer_fingerprint;
  int64_t vocab_size = 0;
  std::string split;  // what a document is: "file" or "line"
  int64_t num_tokens = 0, num_documents = 0, text_bytes = 0;
  int64_t bin_bytes = 0, idx_bytes = 0;
  std::string bin_checksum, idx_checksum;
  std::vector<SourceFile> sources;
  // How documents were chosen (corpus_builder.cpp), and what each stage did: (name, value). Empty in sidecars
  // of earlier builds.
  std::string recipe;
  std::vector<std::pair<std::string, int64_t>> counters;
};

// Memory-mapped and immutable; every member function may be called from several threads at once. Changing the
// files while a corpus is open is not supported (builds replace files by rename, which is safe).
class Corpus {
 public:
  // `path` is PREFIX, PREFIX.idx or PREFIX.bin. Checks sizes, header and borders, and that the three files
  // belong together; UserError naming file, field, expected and found.
  static std::shared_ptr<const Corpus> open(const std::filesystem::path& path);

  const std::filesystem::path& prefix() const { return prefix_; }
  TokenType type() const { return type_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return num_documents_; }
  const std::optional<CorpusInfo>& info() const { return info_; }

  // Tokens of document i.
  TokenRange document(int64_t i) const { return {document_begin(i), document_begin(i + 1)}; }
  // The document that token t belongs to.
  int64_t document_at(int64_t t) const;

  // Copies tokens [range.begin, range.end) to `out`, appended. UserError when an id is not below
  // `vocab_size`.
  void read(TokenRange range, int64_t vocab_size, std::vector<int32_t>& out) const;

  // Compares the checksums of both files with the sidecar's and every id with its vocabulary: reads
  // everything. UserError on the first difference, or when there is no sidecar.
  void verify() const;

 private:
  Corpus() = default;
  void parse_index();
  void read_info();
  int64_t sequence_begin(int64_t i) const;
  int64_t document_begin(int64_t i) const;

  std::filesystem::path prefix_;
  MappedFile idx_, bin_;
  TokenType type_ = TokenType::uint16;
  int64_t num_sequences_ = 0, num_documents_ = 0, num_tokens_ = 0;
  const char* pointers_ = nullptr;          // int64 byte offset of each sequence, unaligned
  const char* document_indices_ = nullptr;  // int64 first sequence of each document and the end, unaligned
  std::optional<CorpusInfo> info_;
};

std::filesystem::path bin_path(const std::filesystem::path& prefix);
std::filesystem::path idx_path(const std::filesystem::path& prefix);
std::filesystem::path info_path(const std::filesystem::path& prefix);
// PREFIX of PREFIX, PREFIX.idx or PREFIX.bin.
std::filesystem::path corpus_prefix(const std::filesystem::path& path);

std::string to_json(const CorpusInfo& info);
// Throws UserError naming `file` and the field.
CorpusInfo parse_corpus_info(const std::string& json, const std::filesystem::path& file);

}  // namespace moebius::data
