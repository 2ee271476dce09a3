// The bytes of an input file, decompressed where it is gzip (all members) or zstd (all frames).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moebius::data {

enum class Compression { none, gzip, zstd };

// By the first bytes, so that a wrong name does no harm; by the name where they are missing or say nothing,
// so that a damaged start is reported as such.
Compression compression_of(std::string_view bytes, const std::filesystem::path& name);

// Damaged or cut-off compressed data; what() says where, without the file's name.
class DamagedInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Writes up to `size` bytes to `out`, fewer only at the end; 0: the end. DamagedInput where the data cannot
  // be read on: what came before it has been handed over, and it is thrown again by the next call.
  virtual size_t read(char* out, size_t size) = 0;
  // How many bytes of the file have been used so far.
  virtual size_t position() const = 0;
};

// `bytes` is the whole file and outlives the source.
std::unique_ptr<ByteSource> open_bytes(std::string_view bytes, Compression compression);

}  // namespace moebius::data
