// Which tokens make up a training sequence: a pure function of (seed, step, index in the batch).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/blend.h"
#include "data/corpus.h"

namespace moebius::data {

// One source of training text: a range of tokens of a corpus.
struct SamplerSource {
  std::shared_ptr<const Corpus> corpus;
  TokenRange range;
  double weight = 1;
  std::string name;  // for messages: "data.files[0] (book.txt)"
};

// A run of tokens of one document.
using Segment = TokenRange;

// S + 1 tokens: S inputs and, shifted by one, S targets. Segments that follow each other come from different
// documents (or are the two ends of one that the order of an epoch put side by side).
struct Sequence {
  int64_t source = 0;
  int64_t epoch = 0;
  std::vector<Segment> segments;
};

// The documents of one source in the order of one epoch, joined to one stream and cut into windows.
//
// Each epoch shuffles the documents, drops a random number of tokens below S at the front, cuts windows of S
// tokens (plus one for the last target) and deals the windows out in shuffled order. So every epoch has other
// borders, every window of an epoch comes once, and a single long document is shuffled as well as many short
// ones. At most 2 S - 1 tokens of a source are left out of an epoch, each time others. Memory: 8 bytes for 64
// documents.
class EpochStream {
 public:
  EpochStream(const SamplerSource& source, uint64_t seed, int64_t source_index, int64_t epoch,
              int64_t sequence);

  // Number of windows in every epoch of a source of `num_tokens` tokens; 0 when it is shorter than one.
  static int64_t num_windows(int64_t num_tokens, int64_t sequence);

  // The index-th window in the shuffled order of the epoch.
  void window(int64_t index, std::vector<Segment>& segments) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

// Keeps the streams of recent epochs as a cache and nothing else: any (step, index) may be asked for at any
// time, and the answer is always the same. Not thread-safe; cheap to construct, so give each thread its own.
class Sampler {
 public:
  // UserError when a source of positive weight is shorter than one sequence.
  Sampler(std::vector<SamplerSource> sources, uint64_t seed, int64_t sequence, int64_t batch);
  ~Sampler();
  Sampler(Sampler&&) noexcept;

  // The index-th sequence of the batch of `step`; 0 <= index < batch.
  void sequence(int64_t step, int64_t index, Sequence& out);

  const std::vector<SamplerSource>& sources() const { return sources_; }
  int64_t sequence_length() const { return sequence_; }

 private:
  const EpochStream& stream(int64_t source, int64_t epoch);

  std::vector<SamplerSource> sources_;
  uint64_t seed_;
  int64_t sequence_, batch_;
  Blend blend_;
  struct CachedStream;
  std::vector<CachedStream> cache_;
};

}  // namespace moebius::data
