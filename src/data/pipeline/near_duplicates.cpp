#include "data/pipeline/near_duplicates.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/hash.h"

namespace moebius::data {
namespace {

constexpr int kWords = 5;           // of a run
constexpr int kMostCandidates = 8;  // of a band: boilerplate must not make every look-up long
constexpr uint32_t kNone = 0xFFFFFFFF;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// What a byte counts as inside a word: itself, ASCII capitals as small letters; 0 between words.
constexpr std::array<uint8_t, 256> word_bytes() {
  std::array<uint8_t, 256> table{};
  for (int c = 0; c < 256; ++c) {
    const bool is_capital = c >= 'A' && c <= 'Z';
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c >= 0x80)
      table[static_cast<size_t>(c)] = static_cast<uint8_t>(c);
    if (is_capital) table[static_cast<size_t>(c)] = static_cast<uint8_t>(c - 'A' + 'a');
  }
  return table;
}
constexpr std::array<uint8_t, 256> kWordBytes = word_bytes();

class Minima {
 public:
  Minima() { values_.fill(kNone); }
  void add(uint64_t run) {
    const uint64_t hash = mix(run);
    uint32_t& least = values_[hash >> 57];
    least = std::min(least, static_cast<uint32_t>(hash) & 0x7FFFFFFF);
  }
  // Bins without a run take the value of one that has some, chosen by the bin's number alone.
  void densify() {
    const std::array<uint32_t, Signature::kMinima> filled = values_;
    for (size_t i = 0; i < filled.size(); ++i) {
      for (uint64_t attempt = 1; values_[i] == kNone; ++attempt)
        values_[i] = filled[mix(i + attempt * Signature::kMinima) % Signature::kMinima];
    }
  }
  const std::array<uint32_t, Signature::kMinima>& values() const { return values_; }

 private:
  std::array<uint32_t, Signature::kMinima> values_;
};

void add_runs(std::string_view text, Minima& minima) {
  constexpr uint64_t kBasis = 0xCBF29CE484222325ull, kPrime = 0x100000001B3ull;  // FNV-1a
  std::array<uint64_t, kWords> recent{};
  int64_t num_words = 0;
  const auto run_of = [&](int64_t words) {
    uint64_t run = 0;
    for (int64_t k = num_words - words; k < num_words; ++k)
      run = (run + recent[static_cast<size_t>(k % kWords)]) * 0x9E3779B97F4A7C15ull;
    return run;
  };
  for (size_t i = 0; i < text.size();) {
    uint8_t byte = kWordBytes[static_cast<uint8_t>(text[i])];
    if (byte == 0) {
      ++i;
      continue;
    }
    uint64_t hash = kBasis;
    for (; byte != 0; byte = ++i < text.size() ? kWordBytes[static_cast<uint8_t>(text[i])] : 0)
      hash = (hash ^ byte) * kPrime;
    recent[static_cast<size_t>(num_words++ % kWords)] = mix(hash);
    if (num_words >= kWords) minima.add(run_of(kWords));
  }
  if (num_words == 0) minima.add(hash64(text));
  if (num_words > 0 && num_words < kWords) minima.add(run_of(num_words));
}

}  // namespace

Signature signature_of(std::string_view text) {
  Minima minima;
  add_runs(text, minima);
  minima.densify();
  Signature signature;
  const auto& values = minima.values();
  for (size_t band = 0; band < Signature::kBands; ++band) {
    uint64_t hash = band;
    for (size_t row = 0; row < Signature::kRows; ++row)
      hash = mix(hash * 0x9E3779B97F4A7C15ull + values[band * Signature::kRows + row]);
    signature.bands[band] = hash;
  }
  for (size_t i = 0; i < values.size(); ++i) signature.sketch[i] = static_cast<uint8_t>(mix(values[i]));
  return signature;
}

namespace {

int num_equal(const std::array<uint8_t, Signature::kMinima>& a,
              const std::array<uint8_t, Signature::kMinima>& b) {
  int count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] == b[i];
  return count;
}

constexpr double kByChance = 1.0 / 256;  // that two different minima have the same 8 bits

}  // namespace

double similarity(const Signature& a, const Signature& b) {
  const double equal = static_cast<double>(num_equal(a.sketch, b.sketch)) / Signature::kMinima;
  return std::max(0.0, (equal - kByChance) / (1 - kByChance));
}

KeyTable::KeyTable() : keys_(1024), numbers_(1024, kFree), shift_(64 - 10) {}

void KeyTable::grow() {
  std::vector<uint64_t> keys(2 * keys_.size());
  std::vector<uint32_t> numbers(keys.size(), kFree);
  keys.swap(keys_);
  numbers.swap(numbers_);
  --shift_;
  size_ = 0;
  // From a free slot on, so that equal keys keep their order.
  const size_t mask = keys.size() - 1;
  size_t begin = 0;
  while (numbers[begin] != kFree) ++begin;
  for (size_t k = 1; k <= keys.size(); ++k) {
    const size_t i = (begin + k) & mask;
    if (numbers[i] != kFree) insert(keys[i], numbers[i]);
  }
}

void KeyTable::insert(uint64_t key, uint32_t number) {
  MOEBIUS_CHECK(number != kFree, "2^32 - 1 documents are more than the table of duplicates can number");
  if (3 * (size_ + 1) > 2 * keys_.size()) grow();
  size_t i = slot_of(key);
  while (numbers_[i] != kFree) i = (i + 1) & (keys_.size() - 1);
  keys_[i] = key;
  numbers_[i] = number;
  ++size_;
}

NearDuplicates::NearDuplicates(double threshold)
    : least_equal_(static_cast<int>(
          std::ceil(Signature::kMinima * (kByChance + threshold * (1 - kByChance)) - 1e-9))) {}

bool NearDuplicates::contains_like(const Signature& signature) const {
  for (const uint64_t band : signature.bands) {
    int looked_at = 0;
    const bool found = bands_.any(band, [&](uint32_t number) {
      return num_equal(sketches_[number], signature.sketch) >= least_equal_ || ++looked_at == kMostCandidates;
    });
    if (found && looked_at < kMostCandidates) return true;
  }
  return false;
}

void NearDuplicates::insert(const Signature& signature) {
  const auto number = static_cast<uint32_t>(sketches_.size());
  for (const uint64_t band : signature.bands) {
    int there = 0;
    if (!bands_.any(band, [&](uint32_t) { return ++there == kMostCandidates; })) bands_.insert(band, number);
  }
  sketches_.push_back(signature.sketch);
}

}  // namespace moebius::data
