// Text files to a corpus on disk.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "base/hash.h"
#include "data/corpus.h"
#include "data/tokenizer.h"

namespace moebius::data {

// Writes PREFIX.bin and PREFIX.idx token by token. Nothing is visible under the final names before finish();
// without it the destructor leaves no trace.
class CorpusWriter {
 public:
  CorpusWriter(const std::filesystem::path& prefix, TokenType type);

  // Appends tokens to the document that is being written.
  void add(std::span<const int32_t> tokens);
  void end_document();

  // Completes both files and then the sidecar, for which the caller gives sources and tokenizer; counts,
  // sizes and checksums are filled in here. The old sidecar goes first, so a crash in between never leaves
  // one that describes other files.
  void finish(CorpusInfo info);

 private:
  void end_sequence();

  std::filesystem::path prefix_;
  TokenType type_;
  AtomicFile bin_;
  Hasher bin_hash_;
  std::vector<int32_t> lengths_;  // of sequences; a document of 2^31 tokens or more takes several
  std::vector<int64_t> document_indices_{0};
  int64_t sequence_tokens_ = 0, num_tokens_ = 0;
  std::vector<char> buffer_;
};

// What one document is.
enum class DocumentSplit { file, line };
const char* name_of(DocumentSplit split);

struct CorpusBuild {
  std::vector<std::filesystem::path> files;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::filesystem::path prefix;
  DocumentSplit split = DocumentSplit::file;
  // Called now and then with bytes of text done and to do; may be empty.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress;
};

// Builds the corpus; an existing one under this prefix is replaced. UserError for bad text.
void build_corpus(const CorpusBuild& build);

// Whether a corpus stands under the prefix that this build would make again: same tokenizer, split and source
// files. Files of the same size and time of change count as unchanged; when only the time differs, the
// content decides.
bool corpus_is_current(const CorpusBuild& build);

}  // namespace moebius::data
