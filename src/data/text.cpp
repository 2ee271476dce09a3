#include "data/text.h"

#include <cstring>
#include <iomanip>
#include <sstream>

#include "base/error.h"

namespace moebius::data {
namespace {

// Length of the well-formed character at text[i], or 0. When 0, `matched` is the number of bytes from i on
// that agree with some well-formed character (at least 1 is always consumed by the caller); `cut` says
// whether only the end of the text made it fail.
struct Character {
  size_t length = 0;
  size_t matched = 0;
  bool cut = false;
};

Character character_at(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char lead = byte(i);
  if (lead < 0x80) return {1, 1, false};
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // bounds of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {0, 0, false};
  }
  for (size_t k = 1; k < length; ++k) {
    if (i + k >= text.size()) return {0, k, true};
    if (byte(i + k) < low || byte(i + k) > high) return {0, k, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, length, false};
}

// Skips eight ASCII bytes at a time; most text is ASCII.
size_t skip_ascii(std::string_view text, size_t i) {
  while (i + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080ull) break;
    i += 8;
  }
  return i;
}

std::string hex_byte(char c) {
  std::ostringstream out;
  out << "0x" << std::hex << std::uppercase << std::setw(2) << std::setfill('0')
      << static_cast<int>(static_cast<unsigned char>(c));
  return out.str();
}

}  // namespace

size_t first_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    i = skip_ascii(text, i);
    if (i >= text.size()) break;
    const Character c = character_at(text, i);
    if (c.length == 0) return i;
    i += c.length;
  }
  return text.size();
}

size_t unfinished_utf8_tail(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) return 0;
    if (byte < 0xC0) continue;  // continuation: the lead byte is further back
    return character_at(text, text.size() - back).cut ? back : 0;
  }
  return 0;
}

std::string to_valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t i = 0;
  while (i < text.size()) {
    const size_t valid = first_invalid_utf8(text.substr(i));
    out.append(text.substr(i, valid));
    i += valid;
    if (i >= text.size()) break;
    out.append("\xEF\xBF\xBD");
    const size_t matched = character_at(text, i).matched;
    i += matched > 0 ? matched : 1;
  }
  return out;
}

void check_text(std::string_view text, const std::string& name) {
  if (text.empty()) throw_user_error(name, ": the file is empty; give a text file with some text in it");
  if (const void* nul = std::memchr(text.data(), 0, text.size())) {
    throw_user_error(
        name, ": NUL byte at offset ", static_cast<const char*>(nul) - text.data(),
        ", so this is binary data or UTF-16, not UTF-8 text; give plain text (for UTF-16: iconv -f "
        "utf-16 -t utf-8)");
  }
  if (const size_t bad = first_invalid_utf8(text); bad < text.size()) {
    throw_user_error(name, ": byte ", hex_byte(text[bad]), " at offset ", bad,
                     " is not UTF-8; convert the file first (iconv -f latin1 -t utf-8 OLD > NEW)");
  }
}

}  // namespace moebius::data
