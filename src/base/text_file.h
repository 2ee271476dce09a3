// Text files, plain or compressed with gzip, read in pieces; and how pieces of them appear in messages.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace moebius {

// Hands over the text of a file, decompressed when it is gzip, in pieces of at most 64 KiB. `what` names the
// file in messages ("jobs"), `wanted` says what it should be ("a CSV file, plain or .gz"). UserError when it
// is missing, a folder, cannot be read, or is damaged.
void read_text_pieces(const std::filesystem::path& file, std::string_view what, std::string_view wanted,
                      const std::function<void(std::string_view)>& on_piece);

// The beginning of a text in quotes, safe to print whatever it holds: '12.5x', at most 40 characters.
std::string shown_text(std::string_view text);

// Without blanks, tabs and carriage returns at both ends.
std::string_view trimmed(std::string_view text);

}  // namespace moebius
