#include "data/checksum.h"

#include "base/hash.h"

namespace moebius::data {

std::string checksum_text(uint64_t hash) {
  return "xxh3-64:" + hash_hex(hash);
}

std::string checksum_of(std::string_view bytes) {
  return checksum_text(hash64(bytes));
}

}  // namespace moebius::data
