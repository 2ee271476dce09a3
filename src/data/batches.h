// Batches of text, of random tokens, and of the validation split.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/batch.h"
#include "data/loader.h"
#include "data/sampler.h"
#include "data/tokenizer.h"

namespace moebius::data {

// Training batches: sequences [micro * micro_batch, (micro + 1) * micro_batch) of the sampler's step.
// `vocab_size` bounds the ids: a corpus with a larger one is a UserError.
class TextBatches : public BatchSource {
 public:
  TextBatches(Sampler sampler, int64_t micro_batch, int64_t vocab_size);
  void fill(int64_t step, int64_t micro, Batch& batch) override;

 private:
  Sampler sampler_;
  int64_t micro_batch_, vocab_size_;
  Sequence sequence_;
  std::vector<int32_t> text_;
  std::vector<int64_t> borders_;
};

struct SyntheticShape {
  int64_t sequence, batch, micro_batch, vocab_size;
};

// Uniform random tokens, one document per sequence: Philox keyed by (seed, step, index in the batch).
class SyntheticBatches : public BatchSource {
 public:
  SyntheticBatches(uint64_t seed, const SyntheticShape& shape);
  void fill(int64_t step, int64_t micro, Batch& batch) override;

 private:
  uint64_t seed_;
  SyntheticShape shape_;
  std::vector<int32_t> text_;
};

// The validation split in order: windows of S tokens that follow each other, so that every token but the
// first of a document is predicted exactly once. The last window of each source is padded to S, and the last
// batch to its full number of sequences, without targets. Batch::target_bytes counts the text that the
// targets stand for. Not thread-safe.
class ValidationSet {
 public:
  struct Part {
    std::shared_ptr<const Corpus> corpus;
    TokenRange range;
  };
  // `tokenizer` may be null for synthetic runs, which have no parts.
  ValidationSet(std::vector<Part> parts, std::shared_ptr<const Tokenizer> tokenizer, int64_t vocab_size,
                int64_t sequence, int64_t batch);

  int64_t num_batches() const;
  // Fills batch i of [0, num_batches()); `step` of the batch is i.
  void fill(int64_t i, Batch& batch);

 private:
  std::vector<Part> parts_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  int64_t vocab_size_, sequence_, batch_;
  std::vector<int64_t> first_window_;  // of each part, and the total
  std::vector<int32_t> text_;
  std::vector<int64_t> borders_;
};

}  // namespace moebius::data
