// Checksums as they stand in a sidecar: "xxh3-64:" and 16 hex digits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moebius::data {

std::string checksum_text(uint64_t hash);
std::string checksum_of(std::string_view bytes);

}  // namespace moebius::data
