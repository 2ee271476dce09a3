// Documents that are the same, or nearly.
//
// Two documents are near-duplicates when the sets of their runs of five words (letters and digits, case of
// ASCII ignored; a run without spaces counts as one word) overlap by a share (Jaccard) of at least the
// threshold. The share is estimated from 128 minimum hashes per document (Broder 1997), taken in one pass by
// one-permutation hashing (Li, Owen, Zhang 2012) with the optimal densification of Shrivastava (2017); of
// each minimum 8 bits are kept (b-bit minwise hashing, Li and König 2010), whose standard error is 0.035 at
// 0.8. Candidates come from locality-sensitive hashing with 16 bands of 8 minima: a pair with share 0.8 is
// found with probability 0.95, with 0.9 in 99.99 of 100 cases, one with 0.5 is looked at in 6 of 100. All of
// it is a function of the text alone.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moebius::data {

struct Signature {
  static constexpr int kMinima = 128, kBands = 16, kRows = kMinima / kBands;
  std::array<uint64_t, kBands> bands;
  std::array<uint8_t, kMinima> sketch;
};

Signature signature_of(std::string_view text);

// Estimated Jaccard share of the documents' runs of words.
double similarity(const Signature& a, const Signature& b);

// 64-bit keys with numbers; a key may stand several times. Open addressing, 12 bytes and room per entry.
class KeyTable {
 public:
  KeyTable();
  void insert(uint64_t key, uint32_t number);
  // Calls visit(number) for the entries of `key` in order of insertion until it returns true; returns
  // whether one did.
  template <class F>
  bool any(uint64_t key, F&& visit) const {
    for (size_t i = slot_of(key); numbers_[i] != kFree; i = (i + 1) & (keys_.size() - 1))
      if (keys_[i] == key && visit(numbers_[i])) return true;
    return false;
  }

 private:
  static constexpr uint32_t kFree = 0xFFFFFFFF;
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull) >> shift_; }
  void grow();

  std::vector<uint64_t> keys_;
  std::vector<uint32_t> numbers_;
  int shift_;
  size_t size_ = 0;
};

// The documents kept so far. About 450 bytes of memory per document.
class NearDuplicates {
 public:
  // threshold: smallest estimated share that counts as the same, within (0, 1].
  explicit NearDuplicates(double threshold);
  bool contains_like(const Signature& signature) const;
  void insert(const Signature& signature);

 private:
  int least_equal_;  // minima that must agree
  KeyTable bands_;
  std::vector<std::array<uint8_t, Signature::kMinima>> sketches_;
};

}  // namespace moebius::data
