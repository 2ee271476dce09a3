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
      const Slot& slot = slots_[i];
      if (slot.key == key) return slot.found;
      if (slot.key == kEmpty) return {};
    }
  }

  // Joins `symbols` in place. Takes time O(n log n) for n symbols; `scratch` only saves allocations.
  struct Scratch {
    std::vector<uint64_t> queue;
    std::vector<int32_t> before, after;
  };
  void merge(std::vector<int32_t>& symbols, Scratch& scratch) const;

 private:
  struct Slot {
    uint64_t key;
    Found found;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t key_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull) >> shift_; }
  void merge_few(std::vector<int32_t>& symbols) const;
  void merge_many(std::vector<int32_t>& symbols, Scratch& scratch) const;

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  int shift_ = 63;
};

}  // namespace moebius::data
