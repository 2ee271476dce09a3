#include "data/bpe/merge_table.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "base/check.h"

namespace moebius::data {
namespace {

constexpr size_t kFew = 40;  // symbols up to which looking at all pairs beats a queue

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  int bits = 1;
  while ((size_t{1} << bits) < merges.size() * 2 + 2) ++bits;
  slots_.assign(size_t{1} << bits, {kEmpty, {}});
  mask_ = slots_.size() - 1;
  shift_ = 64 - bits;
  for (const Merge& merge : merges) {
    const uint64_t key = key_of(merge.left, merge.right);
    size_t i = slot_of(key);
    while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & mask_;
    slots_[i] = {key, {merge.rank, merge.result}};
  }
}

void MergeTable::merge(std::vector<int32_t>& symbols, Scratch& scratch) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kFew) {
    merge_few(symbols);
  } else {
    merge_many(symbols, scratch);
  }
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

// A queue of (rank, position). Entries are not taken out when a neighbour changes: the text of a symbol only
// grows, so a pair that has another rank by now is recognised when its old entry comes up.
void MergeTable::merge_many(std::vector<int32_t>& symbols, Scratch& scratch) const {
  const size_t count = symbols.size();
  MOEBIUS_CHECK_LT(count, static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  auto& [queue, before, after] = scratch;
  before.resize(count);
  after.resize(count);
  queue.clear();
  const auto entry = [](uint32_t rank, size_t at) { return uint64_t{rank} << 32 | at; };
  for (size_t i = 0; i < count; ++i) {
    before[i] = static_cast<int32_t>(i) - 1;
    after[i] = i + 1 < count ? static_cast<int32_t>(i) + 1 : -1;
    if (i + 1 == count) break;
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
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

}  // namespace moebius::data
