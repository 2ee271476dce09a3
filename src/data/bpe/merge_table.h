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
    struct Place {
      int32_t at, previous;
    };
    // The places of a rank whose turn it is, ascending, and how far it has come.
    struct Batch {
      uint32_t rank = kNoRank;
      size_t next = 0;
      std::vector<int32_t> places;
    };
    std::vector<int32_t> before, after;
    std::vector<int32_t> last_place;  // by rank: into `places`, and from there backwards
    std::vector<Place> places;
    std::vector<uint32_t> ranks;  // those that have places: a heap
    std::vector<Batch> suspended;
    std::vector<int32_t> spare;
  };
  // Joins `symbols` in place, in time linear in their number, up to sorting the ranks that occur.
  void merge(std::vector<int32_t>& symbols, Scratch& scratch) const;

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t key_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull) >> shift_; }
  void merge_few(std::vector<int32_t>& symbols) const;
  void merge_many(std::vector<int32_t>& symbols, Scratch& scratch) const;
  void note(const std::vector<int32_t>& symbols, int32_t left, int32_t right, Scratch& scratch) const;
  static Scratch::Batch take_batch(uint32_t rank, Scratch& scratch);

  std::vector<uint64_t> keys_;  // apart from what they lead to: most look-ups find nothing
  std::vector<Found> found_;
  size_t num_ranks_ = 0;
  size_t mask_ = 0;
  int shift_ = 63;
};

}  // namespace moebius::data
