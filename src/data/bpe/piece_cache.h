// Remembers the ids of pieces of text that came up before. Of fixed size, exact (whole keys are compared),
// without allocation after construction: two sets of slots, one for pieces of up to 15 bytes and 3 ids, which
// are nearly all of natural text, one for pieces of up to 60 bytes and 15 ids. A new piece takes the place of
// the one that was not used last among the two that could stand where it stands.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius::data {

class PieceCache {
 public:
  static constexpr size_t kShortBytes = 15, kShortIds = 3, kLongBytes = 60, kLongIds = 15;

  struct alignas(16) Ids {
    int32_t ids[kShortIds];
    uint32_t count;
  };
  // A short piece as two words: its bytes, zeros behind them, its length in the last byte.
  struct Key {
    uint64_t low, high;
    bool operator==(const Key&) const = default;
  };

  PieceCache() : short_(kShortSlots), long_(kLongSlots) {}

  // `piece` has at most kShortBytes bytes. With `readable`, 16 bytes may be read from its begin.
  static Key key_of(std::string_view piece, bool readable) {
    const size_t size = piece.size();
    Key key = {0, 0};
    if (readable) {
      std::memcpy(&key, piece.data(), 16);
      key.low &= size >= 8 ? ~uint64_t{0} : (uint64_t{1} << size * 8) - 1;
      key.high &= size > 8 ? (uint64_t{1} << (size - 8) * 8) - 1 : 0;
    } else {
      std::memcpy(&key, piece.data(), size);
    }
    key.high |= uint64_t{size} << 56;
    return key;
  }

  // Null when the piece is not there. The result is good until the next insert.
  const Ids* find(const Key& key) {
    ShortSlot* const pair = &short_[hash(key.low, key.high) % (kShortSlots / 2) * 2];
    if (pair[0].key == key) return &pair[0].ids;
    if (pair[1].key == key) {
      std::swap(pair[0], pair[1]);
      return &pair[0].ids;
    }
    return nullptr;
  }
  // At most kShortIds ids.
  void insert(const Key& key, std::span<const int32_t> ids) {
    ShortSlot* const pair = &short_[hash(key.low, key.high) % (kShortSlots / 2) * 2];
    pair[1] = pair[0];
    pair[0].key = key;
    pair[0].ids.count = static_cast<uint32_t>(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) pair[0].ids.ids[i] = ids[i];
  }

  // For pieces of at most kLongBytes bytes; false when the piece is not there.
  bool find_long(std::string_view piece, std::span<const int32_t>& ids) const {
    const LongSlot& slot = long_[long_slot(piece)];
    if (slot.size != piece.size() || std::memcmp(slot.bytes, piece.data(), piece.size()) != 0) return false;
    ids = {slot.ids, slot.count};
    return true;
  }
  // At most kLongBytes bytes and kLongIds ids.
  void insert_long(std::string_view piece, std::span<const int32_t> ids) {
    LongSlot& slot = long_[long_slot(piece)];
    slot.size = static_cast<uint8_t>(piece.size());
    slot.count = static_cast<uint8_t>(ids.size());
    std::memcpy(slot.bytes, piece.data(), piece.size());
    for (size_t i = 0; i < ids.size(); ++i) slot.ids[i] = ids[i];
  }

 private:
  static constexpr size_t kShortSlots = 1 << 16, kLongSlots = 1 << 13;  // 2 MiB and 1 MiB

  struct ShortSlot {
    Key key = {0, 0};  // no piece is empty, so none has this key
    Ids ids = {{-1, -1, -1}, 0};
  };
  struct LongSlot {
    uint8_t size = 0, count = 0;
    char bytes[kLongBytes] = {};
    int32_t ids[kLongIds] = {};
  };

  static uint64_t hash(uint64_t a, uint64_t b) {
    const auto product =
        static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15ull) * (b ^ 0xD6E8FEB86659FD93ull);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  static size_t long_slot(std::string_view piece) {
    uint64_t value = piece.size();
    size_t at = 0;
    for (; at + 8 <= piece.size(); at += 8) {
      uint64_t word;
      std::memcpy(&word, piece.data() + at, 8);
      value = hash(value, word);
    }
    uint64_t word = 0;
    std::memcpy(&word, piece.data() + at, piece.size() - at);
    return hash(value, word) % kLongSlots;
  }

  std::vector<ShortSlot> short_;
  std::vector<LongSlot> long_;
};

}  // namespace moebius::data
