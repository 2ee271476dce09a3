#include "data/chat/text_methods.h"

#include <algorithm>

#include "data/bpe/unicode.h"
#include "data/chat/builtins.h"

namespace moebius::data::chat {
namespace {

bool is_python_space(std::string_view character) {
  const uint32_t code = decode_utf8(character, 0).code;
  return is_white_space(code) || (code >= 0x1C && code <= 0x1F);
}

uint32_t upper_of(uint32_t c) {
  if (c >= 'a' && c <= 'z') return c - 32;
  if ((c >= 0xE0 && c <= 0xFE && c != 0xF7) || (c >= 0x3B1 && c <= 0x3C9 && c != 0x3C2) ||
      (c >= 0x430 && c <= 0x44F))
    return c - 32;
  return c >= 0x450 && c <= 0x45F ? c - 80 : c;
}
uint32_t lower_of(uint32_t c) {
  if (c >= 'A' && c <= 'Z') return c + 32;
  if ((c >= 0xC0 && c <= 0xDE && c != 0xD7) || (c >= 0x391 && c <= 0x3A9 && c != 0x3A2) ||
      (c >= 0x410 && c <= 0x42F))
    return c + 32;
  return c >= 0x400 && c <= 0x40F ? c + 80 : c;
}

// Each character through `first` where it begins a word (or the text), through `rest` elsewhere.
template <class First, class Rest>
std::string mapped(std::string_view text, bool each_word, First first, Rest rest) {
  std::string out;
  bool begins = true;
  for (size_t at = 0; at < text.size();) {
    const Decoded c = decode_utf8(text, at);
    append_utf8(begins ? first(c.code) : rest(c.code), out);
    begins = each_word && (category_bit(c.code) & kLetters) == 0;
    at += c.length;
  }
  return out;
}

}  // namespace

std::string stripped(std::string_view text, std::string_view characters, bool left, bool right) {
  const auto goes = [&](std::string_view character) {
    return characters.empty() ? is_python_space(character)
                              : characters.find(character) != std::string_view::npos;
  };
  while (left && !text.empty() && goes(text.substr(0, decode_utf8(text, 0).length)))
    text.remove_prefix(decode_utf8(text, 0).length);
  while (right && !text.empty() && goes(text.substr(text.size() - length_before(text, text.size()))))
    text.remove_suffix(length_before(text, text.size()));
  return std::string(text);
}

std::string upper(std::string_view text) {
  return mapped(text, false, upper_of, upper_of);
}
std::string lower(std::string_view text) {
  return mapped(text, false, lower_of, lower_of);
}
std::string capitalized(std::string_view text) {
  return mapped(text, false, upper_of, lower_of);
}
std::string title(std::string_view text) {
  return mapped(text, true, upper_of, lower_of);
}

std::vector<std::string> split(std::string_view text, std::string_view separator, int64_t most) {
  std::vector<std::string> parts;
  if (!separator.empty()) {
    size_t at = 0;
    for (size_t found; (most < 0 || static_cast<int64_t>(parts.size()) < most) &&
                       (found = text.find(separator, at)) != std::string_view::npos;
         at = found + separator.size())
      parts.emplace_back(text.substr(at, found - at));
    parts.emplace_back(text.substr(at));
    return parts;
  }
  std::string rest = stripped(text, "", true, false);
  while (!rest.empty()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(stripped(rest, "", false, true));
      break;
    }
    size_t end = 0;
    while (end < rest.size() && !is_python_space(std::string_view(rest).substr(end)))
      end += decode_utf8(rest, end).length;
    parts.push_back(rest.substr(0, end));
    rest = stripped(std::string_view(rest).substr(end), "", true, false);
  }
  return parts;
}

std::vector<std::string> split_from_right(std::string_view text, std::string_view separator, int64_t most) {
  std::vector<std::string> all = split(text, separator, -1);
  if (most < 0 || static_cast<int64_t>(all.size()) <= most + 1 || separator.empty()) return all;
  const size_t joined = all.size() - static_cast<size_t>(most);
  std::string first = all[0];
  for (size_t i = 1; i < joined; ++i) (first += separator) += all[i];
  std::vector<std::string> parts = {first};
  parts.insert(parts.end(), all.begin() + static_cast<std::ptrdiff_t>(joined), all.end());
  return parts;
}

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> lines =
      split(replaced(replaced(text, "\r\n", "\n", -1), "\r", "\n", -1), "\n", -1);
  if (lines.back().empty()) lines.pop_back();
  return lines;
}

}  // namespace moebius::data::chat
