// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). A number is a pure function of (seed, purpose, step, index): no state to save, none
// to share between threads, and a resumed run draws what the straight one drew.
//
//   const Philox random(seed, "init", step);
//   float w = std * random.normal(i);              // element i, whatever the order in which elements are
//   drawn
//
// uniform/normal/bits32 address 32-bit lanes: lane i is word i % 4 of block i / 4.
// bits64/below/uniform_double address 64-bit lanes: two per block. Mixing both widths for one (seed, purpose,
// step) repeats bits; use two purposes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <string_view>

namespace moebius {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

inline constexpr PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key, int rounds = 10) {
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) {
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
  }
  return counter;
}

class Philox {
 public:
  // `purpose` names the stream ("init", "shuffle", "sample"); it is hashed together with the seed into the
  // key.
  constexpr Philox(uint64_t seed, std::string_view purpose, uint64_t step = 0) : step_(step) {
    const uint64_t mixed = mix(mix(seed) ^ name_hash(purpose));
    key_ = {static_cast<uint32_t>(mixed), static_cast<uint32_t>(mixed >> 32)};
  }

  // The same purpose and seed at another step.
  constexpr Philox at_step(uint64_t step) const {
    Philox other = *this;
    other.step_ = step;
    return other;
  }

  // Four 32-bit words.
  constexpr PhiloxCounter block(uint64_t index) const {
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                       static_cast<uint32_t>(step_), static_cast<uint32_t>(step_ >> 32)},
                      key_);
  }

  constexpr uint32_t bits32(uint64_t index) const { return block(index / 4)[index % 4]; }
  constexpr uint64_t bits64(uint64_t index) const {
    const PhiloxCounter words = block(index / 2);
    const size_t first = 2 * (index % 2);
    return words[first] | uint64_t{words[first + 1]} << 32;
  }

  // In [0, 1), 24 random bits.
  constexpr float uniform(uint64_t index) const { return static_cast<float>(bits32(index) >> 8) * 0x1p-24f; }
  // In [0, 1), 53 random bits.
  constexpr double uniform_double(uint64_t index) const {
    return static_cast<double>(bits64(index) >> 11) * 0x1p-53;
  }

  // In [0, bound), bound > 0. Multiply-high; the bias is below bound / 2^64.
  constexpr uint64_t below(uint64_t index, uint64_t bound) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(bits64(index)) * bound) >> 64);
  }

  // Standard normal (Box-Muller in double, rounded once): lanes 0 and 1 of a block give one pair, 2 and 3
  // another.
  float normal(uint64_t index) const { return normals(index / 4)[index % 4]; }

  // out[i] = normal(first + i), one block for each four.
  void fill_normal(std::span<float> out, uint64_t first = 0) const {
    fill(out, first, [this](uint64_t b) { return normals(b); });
  }
  void fill_uniform(std::span<float> out, uint64_t first = 0) const {
    fill(out, first, [this](uint64_t b) {
      const PhiloxCounter words = block(b);
      std::array<float, 4> values;
      for (size_t i = 0; i < 4; ++i) values[i] = static_cast<float>(words[i] >> 8) * 0x1p-24f;
      return values;
    });
  }

 private:
  static constexpr uint64_t name_hash(std::string_view name) {  // FNV-1a
    uint64_t hash = 0xCBF29CE484222325u;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    return hash;
  }
  static constexpr uint64_t mix(uint64_t x) {  // finalizer of splitmix64: a bijection
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  std::array<float, 4> normals(uint64_t b) const {
    const PhiloxCounter words = block(b);
    std::array<float, 4> values;
    for (size_t pair = 0; pair < 2; ++pair) {
      const double u = (static_cast<double>(words[2 * pair]) + 0.5) * 0x1p-32;  // in (0, 1)
      const double angle = 2 * std::numbers::pi * (static_cast<double>(words[2 * pair + 1]) * 0x1p-32);
      const double radius = std::sqrt(-2 * std::log(u));
      values[2 * pair] = static_cast<float>(radius * std::cos(angle));
      values[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
    return values;
  }

  template <class Block>
  static void fill(std::span<float> out, uint64_t first, const Block& values_of) {
    for (size_t done = 0; done < out.size();) {
      const uint64_t index = first + done;
      const auto values = values_of(index / 4);
      const size_t count = std::min<size_t>(4 - index % 4, out.size() - done);
      for (size_t i = 0; i < count; ++i) out[done + i] = values[index % 4 + i];
      done += count;
    }
  }

  PhiloxKey key_{};
  uint64_t step_;
};

}  // namespace moebius
