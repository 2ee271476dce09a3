#include "ckpt/text.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "base/concat.h"

namespace moebius::ckpt {

std::string in_quotes(std::string_view text, size_t max_length) {
  std::string out = "'";
  size_t length = std::min(text.size(), max_length);
  // Never cut a UTF-8 sequence in two.
  while (length < text.size() && length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80)
    --length;
  for (const char c : text.substr(0, length)) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7F) {
      std::array<char, 8> escaped{};
      std::snprintf(escaped.data(), escaped.size(), "\\x%02x", code);
      out += escaped.data();
    } else {
      out += c;
    }
  }
  if (length < text.size()) out += "...";
  return out + "'";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

std::string names_text(const std::vector<std::string>& names, size_t max_names) {
  std::string out;
  for (size_t i = 0; i < names.size() && i < max_names; ++i)
    out += (i == 0 ? "" : ", ") + in_quotes(names[i]);
  if (names.size() > max_names) out += concat(" and ", names.size() - max_names, " more");
  return out;
}

}  // namespace moebius::ckpt
