// How names, and shapes appear in messages about checkpoint files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::ckpt {

// 'name' with control characters escaped and at most `max_length` characters: safe to print whatever a file
// holds.
std::string in_quotes(std::string_view text, size_t max_length = 120);

// "[8, 1024, 128]"; "[]" for a scalar.
std::string shape_text(const std::vector<int64_t>& shape);

// First few of many names: "'a', 'b', 'c' and 7 more".
std::string names_text(const std::vector<std::string>& names, size_t max_names = 5);

}  // namespace moebius::ckpt
