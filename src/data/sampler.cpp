#include "data/sampler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/philox.h"
#include "data/permutation.h"

namespace moebius::data {

namespace {

uint64_t random_key(uint64_t seed, const char* purpose, int64_t source, int64_t epoch) {
  return Philox(seed, purpose, epoch).bits64(source);
}

}  // namespace

struct EpochStream::Impl {
  static constexpr int64_t kBlock = 64;  // documents between two kept sums

  Impl(const SamplerSource& s, uint64_t seed, int64_t source, int64_t epoch, int64_t sequence_length)
      : corpus(s.corpus),
        range(s.range),
        sequence(sequence_length),
        first_document(corpus->document_at(range.begin)),
        documents(corpus->document_at(range.end - 1) + 1 - first_document,
                  random_key(seed, "data.documents", source, epoch)),
        windows(num_windows(range.size(), sequence), random_key(seed, "data.windows", source, epoch)) {
    const int64_t num_phases = std::min(sequence, range.size() - windows.size() * sequence);
    phase = static_cast<int64_t>(Philox(seed, "data.phase", epoch).below(source, num_phases));
    int64_t sum = 0;
    for (int64_t i = 0; i < documents.size(); ++i) {
      if (i % kBlock == 0) sums.push_back(sum);
      sum += document(i).size();
    }
    MOEBIUS_CHECK_EQ(sum, range.size());
  }

  // The i-th document in the order of the epoch, clipped to the range.
  TokenRange document(int64_t i) const {
    const TokenRange whole = corpus->document(first_document + documents(i));
    return {std::max(whole.begin, range.begin), std::min(whole.end, range.end)};
  }

  std::shared_ptr<const Corpus> corpus;
  TokenRange range;
  int64_t sequence;
  int64_t first_document;
  Permutation documents, windows;
  int64_t phase;
  std::vector<int64_t> sums;  // tokens before document kBlock * i
};

EpochStream::EpochStream(const SamplerSource& source, uint64_t seed, int64_t source_index, int64_t epoch,
                         int64_t sequence)
    : impl_(std::make_shared<const Impl>(source, seed, source_index, epoch, sequence)) {}

int64_t EpochStream::num_windows(int64_t num_tokens, int64_t sequence) {
  if (num_tokens < sequence + 1) return 0;
  return std::max<int64_t>(1, (num_tokens - sequence) / sequence);
}

void EpochStream::window(int64_t index, std::vector<Segment>& segments) const {
  const Impl& s = *impl_;
  segments.clear();
  int64_t skip = s.phase + s.windows(index) * s.sequence;  // tokens of the stream before the window
  int64_t left = s.sequence + 1;
  const int64_t block = std::upper_bound(s.sums.begin(), s.sums.end(), skip) - s.sums.begin() - 1;
  skip -= s.sums[block];
  for (int64_t i = block * Impl::kBlock; left > 0; ++i) {
    const TokenRange document = s.document(i);
    if (skip >= document.size()) {
      skip -= document.size();
      continue;
    }
    const int64_t take = std::min(left, document.size() - skip);
    segments.push_back({document.begin + skip, document.begin + skip + take});
    left -= take;
    skip = 0;
  }
}

struct Sampler::CachedStream {
  int64_t source, epoch;
  EpochStream stream;
};

Sampler::~Sampler() = default;
Sampler::Sampler(Sampler&&) noexcept = default;

namespace {

std::vector<double> weights_of(const std::vector<SamplerSource>& sources) {
  std::vector<double> weights;
  for (const auto& source : sources) weights.push_back(source.weight);
  return weights;
}

}  // namespace

Sampler::Sampler(std::vector<SamplerSource> sources, uint64_t seed, int64_t sequence, int64_t batch)
    : sources_(std::move(sources)),
      seed_(seed),
      sequence_(sequence),
      batch_(batch),
      blend_(weights_of(sources_)) {
  for (const auto& source : sources_) {
    if (source.weight > 0 && source.range.size() < sequence + 1) {
      throw_user_error(
          source.name, " has ", source.range.size(), " training tokens, but train.sequence is ", sequence,
          " and one sequence needs ", sequence + 1,
          "; lower train.sequence, give more text, or join short files to one corpus (moebius data build)");
    }
  }
}

void Sampler::sequence(int64_t step, int64_t index, Sequence& out) {
  MOEBIUS_CHECK(step >= 0 && index >= 0 && index < batch_, "step ", step, ", index ", index, " of ", batch_);
  const Blend::Pick pick = blend_.pick(step * batch_ + index);
  const int64_t windows = EpochStream::num_windows(sources_[pick.source].range.size(), sequence_);
  out.source = pick.source;
  out.epoch = pick.index / windows;
  stream(out.source, out.epoch).window(pick.index % windows, out.segments);
}

// A batch touches at most two epochs of a large source, so per source the newest two are kept.
const EpochStream& Sampler::stream(int64_t source, int64_t epoch) {
  const auto is_wanted = [&](const CachedStream& c) { return c.source == source && c.epoch == epoch; };
  auto found = std::find_if(cache_.begin(), cache_.end(), is_wanted);
  if (found == cache_.end()) {
    const auto oldest =
        std::find_if(cache_.begin(), cache_.end(), [&](const auto& c) { return c.source == source; });
    const bool full =
        std::count_if(cache_.begin(), cache_.end(), [&](const auto& c) { return c.source == source; }) >= 2;
    if (full) cache_.erase(oldest);
    cache_.push_back({source, epoch, EpochStream(sources_[source], seed_, source, epoch, sequence_)});
    found = cache_.end() - 1;
  }
  return found->stream;
}

}  // namespace moebius::data
