// UTF-8 text: checking it, and cutting byte streams into whole characters.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace moebius::data {

// Offset of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms,
// no surrogates, nothing above U+10FFFF), or text.size() when all of it is well formed.
size_t first_invalid_utf8(std::string_view text);

// Number of bytes at the end of `text` that begin a character without finishing it (0 to 3). Bytes that can
// never become well-formed UTF-8 do not count.
size_t unfinished_utf8_tail(std::string_view text);

// `text` with every maximal ill-formed part replaced by U+FFFD (the practice that the Unicode standard
// recommends).
std::string to_valid_utf8(std::string_view text);

// Throws UserError naming `name`, the byte offset, the reason and the way out when `text` is empty, has a NUL
// byte (binary data) or is not UTF-8.
void check_text(std::string_view text, const std::string& name);

}  // namespace moebius::data
