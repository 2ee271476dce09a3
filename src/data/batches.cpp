#include "data/batches.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/philox.h"

namespace moebius::data {

TextBatches::TextBatches(Sampler sampler, int64_t micro_batch, int64_t vocab_size)
    : sampler_(std::move(sampler)), micro_batch_(micro_batch), vocab_size_(vocab_size) {}

void TextBatches::fill(int64_t step, int64_t micro, Batch& batch) {
  batch.clear();
  batch.step = step;
  batch.micro = micro;
  for (int64_t i = 0; i < micro_batch_; ++i) {
    sampler_.sequence(step, micro * micro_batch_ + i, sequence_);
    const Corpus& corpus = *sampler_.sources()[sequence_.source].corpus;
    text_.clear();
    borders_.clear();
    for (const Segment& segment : sequence_.segments) {
      if (!text_.empty()) borders_.push_back(static_cast<int64_t>(text_.size()));
      corpus.read(segment, vocab_size_, text_);
    }
    batch.add_sequence(text_, sampler_.sequence_length(), borders_);
  }
}

SyntheticBatches::SyntheticBatches(uint64_t seed, const SyntheticShape& shape) : seed_(seed), shape_(shape) {
  MOEBIUS_CHECK_GE(shape.vocab_size, 1);
}

void SyntheticBatches::fill(int64_t step, int64_t micro, Batch& batch) {
  batch.clear();
  batch.step = step;
  batch.micro = micro;
  text_.resize(shape_.sequence + 1);
  for (int64_t i = 0; i < shape_.micro_batch; ++i) {
    const Philox random(seed_, "data.synthetic", step * shape_.batch + micro * shape_.micro_batch + i);
    for (size_t t = 0; t < text_.size(); ++t)
      text_[t] = static_cast<int32_t>(random.below(t, shape_.vocab_size));
    batch.add_sequence(text_, shape_.sequence, {});
  }
}

ValidationSet::ValidationSet(std::vector<Part> parts, std::shared_ptr<const Tokenizer> tokenizer,
                             int64_t vocab_size, int64_t sequence, int64_t batch)
    : parts_(std::move(parts)),
      tokenizer_(std::move(tokenizer)),
      vocab_size_(vocab_size),
      sequence_(sequence),
      batch_(batch),
      first_window_{0} {
  for (const Part& part : parts_) {
    const int64_t num_targets = std::max<int64_t>(part.range.size() - 1, 0);
    first_window_.push_back(first_window_.back() + (num_targets + sequence - 1) / sequence);
  }
}

int64_t ValidationSet::num_batches() const {
  return (first_window_.back() + batch_ - 1) / batch_;
}

void ValidationSet::fill(int64_t i, Batch& batch) {
  MOEBIUS_CHECK(i >= 0 && i < num_batches(), "batch ", i, " of ", num_batches());
  batch.clear();
  batch.step = i;
  batch.micro = 0;
  for (int64_t window = i * batch_; window < std::min((i + 1) * batch_, first_window_.back()); ++window) {
    const auto after = std::upper_bound(first_window_.begin(), first_window_.end(), window);
    const int64_t p = after - first_window_.begin() - 1;
    const Part& part = parts_[p];
    const int64_t begin = part.range.begin + (window - first_window_[p]) * sequence_;
    const int64_t end = std::min(begin + sequence_ + 1, part.range.end);
    text_.clear();
    borders_.clear();
    part.corpus->read({begin, end}, vocab_size_, text_);
    for (int64_t d = part.corpus->document_at(begin) + 1; d < part.corpus->num_documents(); ++d) {
      const TokenRange document = part.corpus->document(d);
      if (document.begin >= end) break;
      if (document.size() > 0) borders_.push_back(document.begin - begin);
    }
    const int64_t length = std::min(sequence_, end - begin - 1);
    batch.add_sequence(text_, length, borders_);
    batch.add_padding(sequence_ - length);
  }
  batch.sequence_length = sequence_;
  for (; batch.num_sequences < batch_; ++batch.num_sequences) batch.add_padding(sequence_);
  for (const int64_t target : batch.targets) {
    if (target != kNoTarget && target < tokenizer_->vocab_size()) {
      batch.target_bytes +=
          static_cast<int64_t>(tokenizer_->token_bytes(static_cast<int32_t>(target)).size());
    }
  }
}

}  // namespace moebius::data
