// What Python does with strings.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moebius::data::chat {

// Without the characters of `characters` at both ends; white space where that is empty.
std::string stripped(std::string_view text, std::string_view characters, bool left = true, bool right = true);
// Letters of ASCII, Latin-1, Greek and Cyrillic; others stay.
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalized(std::string_view text);
std::string title(std::string_view text);
// str.split(): at white space where `separator` is empty; most < 0: everywhere.
std::vector<std::string> split(std::string_view text, std::string_view separator, int64_t most);
std::vector<std::string> split_from_right(std::string_view text, std::string_view separator, int64_t most);
std::vector<std::string> split_lines(std::string_view text);

}  // namespace moebius::data::chat
