#include "data/bpe/merge_table.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "base/check.h"

namespace moebius::data {
namespace {

constexpr size_t kFew = 40;  // symbols up to which looking at all pairs beats a queue

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  int bits = 1;
  while ((size_t{1} << bits) < merges.size() + merges.size() / 2 + 2) ++bits;
  keys_.assign(size_t{1} << bits, kEmpty);
  found_.resize(keys_.size());
  mask_ = keys_.size() - 1;
  shift_ = 64 - bits;
  for (const Merge& merge : merges) {
    const uint64_t key = key_of(merge.left, merge.right);
    size_t i = slot_of(key);
    while (keys_[i] != kEmpty && keys_[i] != key) i = (i + 1) & mask_;
    keys_[i] = key;
    found_[i] = {merge.rank, merge.result};
    num_ranks_ = std::max<size_t>(num_ranks_, merge.rank + size_t{1});
  }
}

void MergeTable::merge(std::vector<int32_t>& symbols, Scratch& scratch) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kFew) return merge_few(symbols);
  MOEBIUS_CHECK_LT(symbols.size(), size_t{1} << 29, "symbols in one piece");
  merge_many(symbols, scratch);
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

void MergeTable::merge_few(std::vector<int32_t>& symbols) const {
  Found pairs[kFew];
  int32_t* const ids = symbols.data();
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = find(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == kNoRank) break;
    ids[best] = pairs[best].result;
    --count;
    for (size_t i = best + 1; i < count; ++i) ids[i] = ids[i + 1];
    for (size_t i = best + 1; i + 1 < count; ++i) pairs[i] = pairs[i + 1];
    if (best + 1 < count) pairs[best] = find(ids[best], ids[best + 1]);
    if (best > 0) pairs[best - 1] = find(ids[best - 1], ids[best]);
  }
  symbols.resize(count);
}

// Notes that the pair at `left` waits for its turn, if it has a rank.
void MergeTable::note(const std::vector<int32_t>& symbols, int32_t left, int32_t right,
                      Scratch& scratch) const {
  const uint32_t rank = find(symbols[left], symbols[right]).rank;
  if (rank == kNoRank) return;
  int32_t& last = scratch.last_place[rank];
  if (last < 0) {
    scratch.ranks.push_back(rank);
    std::push_heap(scratch.ranks.begin(), scratch.ranks.end(), std::greater<>());
  }
  scratch.places.push_back({left, last});
  last = static_cast<int32_t>(scratch.places.size()) - 1;
}

// All places of `rank`: what is left of a suspended batch, and what came up since.
MergeTable::Scratch::Batch MergeTable::take_batch(uint32_t rank, Scratch& scratch) {
  Scratch::Batch batch;
  batch.rank = rank;
  batch.places.swap(scratch.spare);
  batch.places.clear();
  for (int32_t i = scratch.last_place[rank]; i >= 0; i = scratch.places[i].previous)
    batch.places.push_back(scratch.places[i].at);
  scratch.last_place[rank] = -1;
  std::reverse(batch.places.begin(), batch.places.end());
  if (!std::is_sorted(batch.places.begin(), batch.places.end()))
    std::sort(batch.places.begin(), batch.places.end());
  // Only the last one suspended can have the lowest rank: each was suspended for a lower one.
  if (scratch.suspended.empty() || scratch.suspended.back().rank != rank) return batch;
  Scratch::Batch earlier = std::move(scratch.suspended.back());
  scratch.suspended.pop_back();
  if (batch.places.empty()) {
    scratch.spare.swap(batch.places);
    return earlier;
  }
  const size_t count = batch.places.size();
  batch.places.insert(batch.places.end(), earlier.places.begin() + static_cast<std::ptrdiff_t>(earlier.next),
                      earlier.places.end());
  std::inplace_merge(batch.places.begin(), batch.places.begin() + static_cast<std::ptrdiff_t>(count),
                     batch.places.end());
  return batch;
}

// Rank by rank, and the places of a rank from left to right. A merge may bring up a pair of a lower rank (in
// vocabularies whose merges are all ways to make each token); then that one goes first and the batch waits.
// A place whose pair has changed by its turn has another rank: the text of a symbol only grows.
void MergeTable::merge_many(std::vector<int32_t>& symbols, Scratch& scratch) const {
  auto& [before, after, last_place, places, ranks, suspended, spare] = scratch;
  const auto count = static_cast<int32_t>(symbols.size());
  before.resize(symbols.size());
  after.resize(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    before[i] = i - 1;
    after[i] = i + 1 < count ? i + 1 : -1;
  }
  last_place.resize(num_ranks_, -1);
  places.clear();
  for (int32_t i = 0; i + 1 < count; ++i) note(symbols, i, i + 1, scratch);
  while (!ranks.empty()) {
    std::pop_heap(ranks.begin(), ranks.end(), std::greater<>());
    const uint32_t rank = ranks.back();
    ranks.pop_back();
    Scratch::Batch batch = take_batch(rank, scratch);
    while (batch.next < batch.places.size() && (ranks.empty() || ranks.front() >= rank)) {
      const int32_t left = batch.places[batch.next++], right = after[left];
      if (symbols[left] < 0 || right < 0) continue;
      const Found found = find(symbols[left], symbols[right]);
      if (found.rank != rank) continue;
      symbols[left] = found.result;
      symbols[right] = -1;
      after[left] = after[right];
      if (after[left] >= 0) {
        before[after[left]] = left;
        note(symbols, left, after[left], scratch);
      }
      if (before[left] >= 0) note(symbols, before[left], left, scratch);
    }
    if (batch.next < batch.places.size()) {
      ranks.push_back(rank);
      std::push_heap(ranks.begin(), ranks.end(), std::greater<>());
      suspended.push_back(std::move(batch));
    } else {
      spare.swap(batch.places);
    }
  }
}

}  // namespace moebius::data
