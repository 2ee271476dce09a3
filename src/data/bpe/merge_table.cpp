#include "data/bpe/merge_table.h"

#include <algorithm>
#include <functional>
#include <unordered_map>

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
  std::unordered_map<int32_t, uint32_t> last_made;  // the rank of the last merge that makes a token
  for (const Merge& merge : merges) {
    const uint64_t key = key_of(merge.left, merge.right);
    size_t i = slot_of(key);
    while (keys_[i] != kEmpty && keys_[i] != key) i = (i + 1) & mask_;
    keys_[i] = key;
    found_[i] = {merge.rank, merge.result};
    num_ranks_ = std::max<size_t>(num_ranks_, merge.rank + size_t{1});
    uint32_t& last = last_made[merge.result];
    last = std::max(last, merge.rank);
  }
  for (const Merge& merge : merges) {
    for (const int32_t part : {merge.left, merge.right}) {
      const auto made = last_made.find(part);
      in_order_ &= made == last_made.end() || made->second < merge.rank;
    }
  }
}

void MergeTable::merge(std::vector<int32_t>& symbols, Scratch& scratch) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kFew) return merge_few(symbols);
  MOEBIUS_CHECK_LT(symbols.size(), size_t{1} << 29, "symbols in one piece");
  link(symbols, scratch);
  if (in_order_) {
    merge_by_rank(symbols, scratch);
  } else {
    merge_by_queue(symbols, scratch);
  }
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

void MergeTable::link(std::vector<int32_t>& symbols, Scratch& scratch) {
  const auto count = static_cast<int32_t>(symbols.size());
  scratch.before.resize(symbols.size());
  scratch.after.resize(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    scratch.before[i] = i - 1;
    scratch.after[i] = i + 1 < count ? i + 1 : -1;
  }
}

// Rank by rank: a merge in order makes only pairs of later ranks, so all places of a rank are known when its
// turn comes. They are the same pair; only where it could overlap itself (a a a) their order matters. A place
// whose pair has changed by then has another rank: the text of a symbol only grows.
void MergeTable::merge_by_rank(std::vector<int32_t>& symbols, Scratch& scratch) const {
  auto& before = scratch.before;
  auto& after = scratch.after;
  auto& last_place = scratch.last_place;
  auto& places = scratch.places;
  auto& ranks = scratch.ranks;
  auto& batch = scratch.batch;
  last_place.resize(num_ranks_, -1);
  places.clear();
  ranks.clear();
  const auto note = [&](int32_t left, int32_t right) {
    const uint32_t rank = find(symbols[left], symbols[right]).rank;
    if (rank == kNoRank) return;
    if (last_place[rank] < 0) {
      ranks.push_back(rank);
      std::push_heap(ranks.begin(), ranks.end(), std::greater<>());
    }
    places.push_back({left, last_place[rank]});
    last_place[rank] = static_cast<int32_t>(places.size()) - 1;
  };
  for (int32_t i = 0; after[i] >= 0; ++i) note(i, after[i]);
  while (!ranks.empty()) {
    std::pop_heap(ranks.begin(), ranks.end(), std::greater<>());
    const uint32_t rank = ranks.back();
    ranks.pop_back();
    batch.clear();
    for (int32_t i = last_place[rank]; i >= 0; i = places[i].previous) batch.push_back(places[i].at);
    last_place[rank] = -1;
    std::reverse(batch.begin(), batch.end());
    if (!std::is_sorted(batch.begin(), batch.end())) std::sort(batch.begin(), batch.end());
    for (const int32_t left : batch) {
      const int32_t right = after[left];
      if (symbols[left] < 0 || right < 0) continue;
      const Found found = find(symbols[left], symbols[right]);
      if (found.rank != rank) continue;
      symbols[left] = found.result;
      symbols[right] = -1;
      after[left] = after[right];
      if (after[left] >= 0) {
        before[after[left]] = left;
        note(left, after[left]);
      }
      if (before[left] >= 0) note(before[left], left);
    }
  }
}

// A queue of (rank, position). Entries are not taken out when a neighbour changes: the text of a symbol only
// grows, so a pair that has another rank by now is recognised when its old entry comes up.
void MergeTable::merge_by_queue(std::vector<int32_t>& symbols, Scratch& scratch) const {
  auto& queue = scratch.queue;
  auto& before = scratch.before;
  auto& after = scratch.after;
  queue.clear();
  const auto entry = [](uint32_t rank, size_t at) { return uint64_t{rank} << 32 | at; };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (const uint32_t rank = find(symbols[i], symbols[i + 1]).rank; rank != kNoRank)
      queue.push_back(entry(rank, i));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto push = [&](int32_t left, int32_t right) {
    const uint32_t rank = find(symbols[left], symbols[right]).rank;
    if (rank == kNoRank) return;
    queue.push_back(entry(rank, static_cast<size_t>(left)));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint32_t rank = static_cast<uint32_t>(queue.back() >> 32);
    const auto left = static_cast<int32_t>(queue.back() & 0xFFFFFFFFu);
    queue.pop_back();
    if (symbols[left] < 0 || after[left] < 0) continue;
    const int32_t right = after[left];
    const Found found = find(symbols[left], symbols[right]);
    if (found.rank != rank) continue;
    symbols[left] = found.result;
    symbols[right] = -1;
    after[left] = after[right];
    if (after[left] >= 0) {
      before[after[left]] = left;
      push(left, after[left]);
    }
    if (before[left] >= 0) push(before[left], left);
  }
}

}  // namespace moebius::data
