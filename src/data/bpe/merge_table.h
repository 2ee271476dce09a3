// Byte-pair merging (Sennrich, Haddow and Birch 2016): neighbouring symbols are joined, always the pair of
// the lowest rank, the leftmost of equals, until no pair is left that has a rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moebius::data {

struct Merge {
  int32_t left, right, result;
  uint32_t rank;
};

// Pairs of ids with their ranks: a flat hash table, immutable after construction.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = ~0u;
  struct Found {
    uint32_t rank = kNoRank;
    int32_t result = -1;
  };

  // Of two merges of the same pair the later one counts.
  explicit MergeTable(const std::vector<Merge>& merges = {});

  Found find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t i = slot_of(key);; i = (i + 1) & mask_) {
      if (keys_[i] == key) return found_[i];
      if (keys_[i] == kEmpty) return {};
    }
  }

  // What merging needs beside the symbols; kept from call to call it saves allocations.
  struct Scratch {
    std::vector<uint64_t> queue;
    std::vector<int32_t> before, after;
    // By rank: the last place that has such a pair, and from there backwards.
    std::vector<int32_t> last_place;
    struct Place {
      int32_t at, previous;
    };
    std::vector<Place> places;
    std::vector<uint32_t> ranks;  // a heap
    std::vector<int32_t> batch;
  };
  // Joins `symbols` in place, in time linear in their number up to the order of the ranks that occur (for
  // merges that a training made; O(n log n) for others).
  void merge(std::vector<int32_t>& symbols, Scratch& scratch) const;

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t key_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull) >> shift_; }
  void merge_few(std::vector<int32_t>& symbols) const;
  void merge_by_rank(std::vector<int32_t>& symbols, Scratch& scratch) const;
  void merge_by_queue(std::vector<int32_t>& symbols, Scratch& scratch) const;
  static void link(std::vector<int32_t>& symbols, Scratch& scratch);

  std::vector<uint64_t> keys_;  // apart from what they lead to: most look-ups find nothing
  std::vector<Found> found_;
  size_t num_ranks_ = 0;
  bool in_order_ = true;  // each merge comes after all that make one of its two parts
  size_t mask_ = 0;
  int shift_ = 63;
};

}  // namespace moebius::data
