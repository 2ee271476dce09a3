// XXH3-64 (xxHash by Yann Collet): checksums of corpora, checkpoints and configs. Detects damage, not
// tampering. The value does not depend on how the bytes were cut into update() calls, nor on the machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace moebius {

uint64_t hash64(const void* data, size_t num_bytes);
inline uint64_t hash64(std::span<const std::byte> bytes) {
  return hash64(bytes.data(), bytes.size());
}
inline uint64_t hash64(std::string_view text) {
  return hash64(text.data(), text.size());
}

// Hash of a file's contents; UserError when it cannot be read.
uint64_t hash_file(const std::filesystem::path& path);

// 16 lower-case hexadecimal digits, most significant first.
std::string hash_hex(uint64_t value);

class Hasher {
 public:
  Hasher();
  void update(const void* data, size_t num_bytes);
  void update(std::span<const std::byte> bytes) { update(bytes.data(), bytes.size()); }
  void update(std::string_view text) { update(text.data(), text.size()); }
  // Hash of everything so far; more may follow.
  uint64_t digest() const;
  std::string hex() const { return hash_hex(digest()); }
  void reset();

 private:
  struct Free {
    void operator()(void* state) const;
  };
  std::unique_ptr<void, Free> state_;
};

}  // namespace moebius
