// Where a planner's documents come from: pieces of at most `context` tokens, in order of arrival.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/planner/plan.h"
#include "data/sampler.h"

namespace moebius::data {

// Not thread-safe. The position is all there is to save: a stream set to it goes on as the saved one did.
class DocumentStream {
 public:
  virtual ~DocumentStream() = default;
  // The next piece; nullopt at the end.
  virtual std::optional<Piece> next() = 0;
  virtual std::vector<int64_t> position() const = 0;
  virtual void seek(const std::vector<int64_t>& position) = 0;
};

// A finite list of lengths, in its order. Documents longer than the context are cut into pieces of `context`
// tokens and the rest; empty ones are passed over. With `may_split` off a longer one is a UserError that
// names it; `name` stands for the list in messages.
class ListStream : public DocumentStream {
 public:
  ListStream(std::vector<int64_t> lengths, int64_t context, bool may_split, const std::string& name);
  std::optional<Piece> next() override;
  std::vector<int64_t> position() const override { return {document_, begin_}; }
  void seek(const std::vector<int64_t>& position) override;

 private:
  std::vector<int64_t> lengths_;
  int64_t context_;
  int64_t document_ = 0, begin_ = 0;
};

// Tokens of document i of the source's corpus that are in the source's range.
TokenRange document_in(const SamplerSource& source, int64_t i);

// The documents of training sources without end. Each epoch of a source deals out the pieces of all its
// documents in shuffled order, each once; a document longer than the context is cut at other places in each
// epoch. Sources take turns so that their shares of tokens follow the weights. A pure function of (seed,
// number of the piece). Memory: 8 bytes for 64 documents.
class CorpusStream : public DocumentStream {
 public:
  struct Options {
    uint64_t seed = 1;
    int64_t context = 0;
    bool may_split = true;
  };
  // UserError naming the source when one of positive weight has nothing to predict, or a document that is
  // longer than the context with may_split off.
  CorpusStream(std::vector<SamplerSource> sources, const Options& options);
  ~CorpusStream() override;
  std::optional<Piece> next() override;
  std::vector<int64_t> position() const override;
  void seek(const std::vector<int64_t>& position) override;

 private:
  struct Epoch;
  struct Cursor {
    int64_t epoch = 0, index = 0;
    int64_t tokens = 0;  // taken so far
  };

  std::vector<SamplerSource> sources_;
  Options options_;
  std::vector<Cursor> cursors_;
  std::vector<std::unique_ptr<Epoch>> epochs_;  // of each cursor
};

}  // namespace moebius::data
