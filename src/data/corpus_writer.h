// Writes a corpus token by token.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "base/hash.h"
#include "data/corpus.h"

namespace moebius::data {

// What is durable of an unfinished corpus.
struct CorpusMark {
  int64_t token_bytes = 0, border_bytes = 0;
};

// Writes into a hidden work folder beside PREFIX; nothing is visible under the final names before finish().
// Without it the destructor removes the folder, unless keep() was called: then another writer can go on from
// a mark.
class CorpusWriter {
 public:
  // Goes on from `mark`, which sync() returned in this process or another; UserError when less than that is
  // left.
  CorpusWriter(const std::filesystem::path& prefix, TokenType type, const CorpusMark& mark = {});
  ~CorpusWriter();
  CorpusWriter(const CorpusWriter&) = delete;
  CorpusWriter& operator=(const CorpusWriter&) = delete;

  // Appends tokens to the document that is being written.
  void add(std::span<const int32_t> tokens);
  void end_document();
  // Between documents: makes everything so far durable.
  CorpusMark sync();
  void keep() { keeps_folder_ = true; }

  // Completes both files and then the sidecar, for which the caller gives sources and tokenizer; counts,
  // sizes and checksums are filled in here. The old sidecar goes first, so a crash in between never leaves
  // one that describes other files.
  void finish(CorpusInfo info);

  int64_t num_tokens() const { return num_tokens_; }

 private:
  void read_back(const CorpusMark& mark);
  void end_sequence(bool ends_document);

  std::filesystem::path prefix_, folder_;
  TokenType type_;
  AppendFile tokens_, borders_;   // borders: int64 per sequence, 2 * length + whether a document ends
  Hasher hash_;                   // of the tokens
  std::vector<int32_t> lengths_;  // of sequences; a document of 2^31 tokens or more takes several
  std::vector<int64_t> document_indices_{0};
  int64_t sequence_tokens_ = 0, num_tokens_ = 0;
  std::vector<char> buffer_;
  bool keeps_folder_ = false;
};

// The work folder of the corpus under this prefix.
std::filesystem::path work_folder(const std::filesystem::path& prefix);

}  // namespace moebius::data
