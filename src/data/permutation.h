// A keyed random permutation of [0, size) that is computed per element: no table, no state.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "base/check.h"

namespace moebius::data {

// Alternating unbalanced Feistel network over the smallest power of two >= size, with cycle walking back into
// [0, size) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): less than two walks on
// average.
class Permutation {
 public:
  Permutation(int64_t size, uint64_t key) : size_(static_cast<uint64_t>(size)) {
    MOEBIUS_CHECK_GE(size, 1);
    const int bits = std::bit_width(size_ - 1);
    low_bits_ = bits / 2;
    low_mask_ = (uint64_t{1} << low_bits_) - 1;
    high_mask_ = (uint64_t{1} << (bits - low_bits_)) - 1;
    for (auto& round_key : keys_) round_key = key = mix(key + 0x9E3779B97F4A7C15ull);
  }

  int64_t size() const { return static_cast<int64_t>(size_); }

  // The element at position i.
  int64_t operator()(int64_t i) const {
    auto x = static_cast<uint64_t>(i);
    do {
      x = encrypt(x);
    } while (x >= size_);
    return static_cast<int64_t>(x);
  }

 private:
  static constexpr int kRounds = 8;

  // Finaliser of SplitMix64 (Steele, Lea, Flood 2014).
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }

  uint64_t encrypt(uint64_t x) const {
    uint64_t low = x & low_mask_, high = x >> low_bits_;
    for (int round = 0; round < kRounds; round += 2) {
      high ^= mix(low + keys_[round]) & high_mask_;
      low ^= mix(high + keys_[round + 1]) & low_mask_;
    }
    return (high << low_bits_) | low;
  }

  uint64_t size_;
  int low_bits_;
  uint64_t low_mask_, high_mask_;
  std::array<uint64_t, kRounds> keys_;
};

}  // namespace moebius::data
