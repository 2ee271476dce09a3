// Thrift's compact protocol, as far as Parquet's metadata need it. DamagedInput when the bytes end early or
// nest too deep.
#pragma once

#include <cstdint>
#include <string_view>

#include "data/pipeline/byte_source.h"

namespace moebius::data {

class ThriftReader {
 public:
  enum Type {
    kStop = 0,
    kTrue = 1,
    kFalse = 2,
    kByte = 3,
    kI16 = 4,
    kI32 = 5,
    kI64 = 6,
    kDouble = 7,
    kBinary = 8,
    kList = 9,
    kSet = 10,
    kMap = 11,
    kStruct = 12
  };

  explicit ThriftReader(std::string_view bytes) : bytes_(bytes) {}
  size_t position() const { return at_; }

  // Calls on_field(id, type) for each field; it reads the value, or returns false to have it skipped.
  template <class F>
  void structure(F&& on_field) {
    const Deeper deeper(*this);
    int id = 0;
    while (true) {
      const uint8_t head = byte();
      const int type = head & 0xF;
      if (type == kStop) return;
      id = (head >> 4) != 0 ? id + (head >> 4) : static_cast<int>(integer());
      if (!on_field(id, type)) skip(type);
    }
  }
  // Calls on_item() for each element of a list, which must be of `type`.
  template <class F>
  void list(int type, F&& on_item) {
    const Deeper deeper(*this);
    const uint8_t head = byte();
    uint64_t size = head >> 4;
    if (size == 15) size = variable();
    if ((head & 0xF) != type || size > bytes_.size()) throw DamagedInput("damaged Parquet metadata");
    for (uint64_t i = 0; i < size; ++i) on_item();
  }
  int64_t integer() {
    const uint64_t value = variable();
    return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
  }
  std::string_view binary() {
    const uint64_t size = variable();
    if (size > bytes_.size() - at_) throw DamagedInput("damaged Parquet metadata");
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  void skip(int type);

 private:
  struct Deeper {
    explicit Deeper(ThriftReader& reader) : depth(reader.depth_) {
      if (++depth > 32) throw DamagedInput("damaged Parquet metadata");
    }
    ~Deeper() { --depth; }
    int& depth;
  };
  uint8_t byte() {
    if (at_ >= bytes_.size()) throw DamagedInput("damaged Parquet metadata");
    return static_cast<uint8_t>(bytes_[at_++]);
  }
  uint64_t variable() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t next = byte();
      value |= static_cast<uint64_t>(next & 0x7F) << shift;
      if (next < 0x80) return value;
    }
    throw DamagedInput("damaged Parquet metadata");
  }

  std::string_view bytes_;
  size_t at_ = 0;
  int depth_ = 0;
};

inline void ThriftReader::skip(int type) {
  switch (type) {
    case kTrue:
    case kFalse:
      return;
    case kByte:
      byte();
      return;
    case kI16:
    case kI32:
    case kI64:
      integer();
      return;
    case kDouble:
      for (int i = 0; i < 8; ++i) byte();
      return;
    case kBinary:
      binary();
      return;
    case kStruct:
      structure([](int, int) { return false; });
      return;
    case kList:
    case kSet: {
      const int item = at_ < bytes_.size() ? bytes_[at_] & 0xF : 0;
      // Booleans in a list take a byte, unlike as fields.
      list(item, [&] { item == kTrue || item == kFalse ? static_cast<void>(byte()) : skip(item); });
      return;
    }
    default:
      throw DamagedInput("damaged Parquet metadata");
  }
}

}  // namespace moebius::data
