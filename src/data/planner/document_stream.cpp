#include "data/planner/document_stream.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/philox.h"
#include "data/permutation.h"

namespace moebius::data {
namespace {

[[noreturn]] void refuse_long(const std::string& name, int64_t document, int64_t length, int64_t context) {
  throw_user_error(name, ": document ", document, " has ", length, " tokens, more than the context of ",
                   context, ", and splitting is off; raise the context or allow splitting");
}

}  // namespace

ListStream::ListStream(std::vector<int64_t> lengths, int64_t context, bool may_split, const std::string& name)
    : lengths_(std::move(lengths)), context_(context) {
  MOEBIUS_CHECK_GE(context, 1);
  if (may_split) return;
  const auto is_long = [&](int64_t length) { return length > context; };
  const auto found = std::find_if(lengths_.begin(), lengths_.end(), is_long);
  if (found != lengths_.end()) refuse_long(name, found - lengths_.begin(), *found, context);
}

std::optional<Piece> ListStream::next() {
  const auto count = static_cast<int64_t>(lengths_.size());
  while (document_ < count && begin_ >= lengths_[document_]) {
    ++document_;
    begin_ = 0;
  }
  if (document_ == count) return std::nullopt;
  const int64_t length = std::min(context_, lengths_[document_] - begin_);
  const Piece piece{0, document_, begin_, length};
  begin_ += length;
  return piece;
}

void ListStream::seek(const std::vector<int64_t>& position) {
  MOEBIUS_CHECK_EQ(position.size(), size_t{2});
  document_ = position[0];
  begin_ = position[1];
}

TokenRange document_in(const SamplerSource& source, int64_t i) {
  const TokenRange whole = source.corpus->document(i);
  return {std::max(whole.begin, source.range.begin), std::min(whole.end, source.range.end)};
}

// The pieces of one source in the order of one epoch.
struct CorpusStream::Epoch {
  static constexpr int64_t kBlock = 64;  // documents between two kept sums

  Epoch(const SamplerSource& s, int64_t source, int64_t epoch, const Options& options)
      : origin(s),
        context(options.context),
        cuts(options.seed, "data.cuts", (static_cast<uint64_t>(source) << 40) + epoch),
        first_document(s.corpus->document_at(s.range.begin)),
        num_documents(s.corpus->document_at(s.range.end - 1) + 1 - first_document) {
    for (int64_t i = 0; i < num_documents; ++i) {
      if (i % kBlock == 0) sums.push_back(num_pieces);
      num_pieces += pieces_of(i);
    }
    order.emplace(num_pieces, Philox(options.seed, "data.pieces", epoch).bits64(source));
  }

  TokenRange document(int64_t i) const { return document_in(origin, first_document + i); }
  // Tokens of the first piece: all, or for a long document a random number, so that the cuts move.
  int64_t first_cut(int64_t i, int64_t length) const {
    return length <= context ? length : 1 + static_cast<int64_t>(cuts.below(i, context));
  }
  int64_t pieces_of(int64_t i) const {
    const int64_t length = document(i).size();
    if (length <= 0) return 0;
    return 1 + (length - first_cut(i, length) + context - 1) / context;
  }
  Piece piece(int64_t source, int64_t index) const {
    int64_t number = (*order)(index);
    const int64_t block = std::upper_bound(sums.begin(), sums.end(), number) - sums.begin() - 1;
    number -= sums[block];
    int64_t i = block * kBlock;
    for (int64_t count; number >= (count = pieces_of(i)); ++i) number -= count;
    const int64_t length = document(i).size(), first = first_cut(i, length);
    const int64_t begin = number == 0 ? 0 : first + (number - 1) * context;
    const int64_t end = std::min(length, first + number * context);
    return {source, first_document + i, begin, end - begin};
  }

  const SamplerSource& origin;
  int64_t context;
  Philox cuts;
  int64_t first_document, num_documents;
  int64_t num_pieces = 0;
  std::optional<Permutation> order;
  std::vector<int64_t> sums;  // pieces before document kBlock * i
};

CorpusStream::~CorpusStream() = default;

CorpusStream::CorpusStream(std::vector<SamplerSource> sources, const Options& options)
    : sources_(std::move(sources)), options_(options), cursors_(sources_.size()), epochs_(sources_.size()) {
  MOEBIUS_CHECK_GE(options.context, 2);
  bool any = false;
  for (size_t s = 0; s < sources_.size(); ++s) {
    const SamplerSource& source = sources_[s];
    if (source.weight <= 0) continue;
    any = true;
    int64_t longest = 0;
    const int64_t begin = source.range.begin, end = source.range.end;
    const int64_t first = begin < end ? source.corpus->document_at(begin) : 0;
    const int64_t last = begin < end ? source.corpus->document_at(end - 1) : -1;
    for (int64_t d = first; d <= last; ++d) {
      const int64_t length = document_in(source, d).size();
      longest = std::max(longest, length);
      if (length > options.context && !options.may_split) {
        refuse_long(source.name, d, length, options.context);
      }
    }
    if (longest < 2) {
      throw_user_error(source.name,
                       " has no document of two training tokens or more, so there is nothing to ",
                       "predict; give more text, or join short files to one corpus (moebius data build)");
    }
  }
  MOEBIUS_CHECK(any);
}

std::optional<Piece> CorpusStream::next() {
  size_t chosen = sources_.size();
  double least = 0;
  for (size_t s = 0; s < sources_.size(); ++s) {
    if (sources_[s].weight <= 0) continue;
    const double taken = static_cast<double>(cursors_[s].tokens) / sources_[s].weight;
    if (chosen == sources_.size() || taken < least) {
      chosen = s;
      least = taken;
    }
  }
  Cursor& cursor = cursors_[chosen];
  const auto source = static_cast<int64_t>(chosen);
  auto& epoch = epochs_[chosen];
  const auto open = [&] {
    epoch = std::make_unique<Epoch>(sources_[chosen], source, cursor.epoch, options_);
  };
  if (!epoch) open();
  if (cursor.index == epoch->num_pieces) {
    ++cursor.epoch;
    cursor.index = 0;
    open();
  }
  const Piece piece = epoch->piece(source, cursor.index++);
  cursor.tokens += piece.length;
  return piece;
}

std::vector<int64_t> CorpusStream::position() const {
  std::vector<int64_t> position;
  for (const Cursor& cursor : cursors_) {
    position.insert(position.end(), {cursor.epoch, cursor.index, cursor.tokens});
  }
  return position;
}

void CorpusStream::seek(const std::vector<int64_t>& position) {
  MOEBIUS_CHECK_EQ(position.size(), 3 * cursors_.size());
  for (size_t s = 0; s < cursors_.size(); ++s) {
    cursors_[s] = {position[3 * s], position[3 * s + 1], position[3 * s + 2]};
    epochs_[s].reset();
  }
}

}  // namespace moebius::data
