#include "base/text_file.h"

#include <zlib.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>
#include <type_traits>

#include "base/error.h"

namespace moebius {
namespace {

struct CloseGz {
  void operator()(gzFile file) const { gzclose(file); }
};
using GzFile = std::unique_ptr<std::remove_pointer_t<gzFile>, CloseGz>;

}  // namespace

void read_text_pieces(const std::filesystem::path& file, std::string_view what, std::string_view wanted,
                      const std::function<void(std::string_view)>& on_piece) {
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored))
    throw_user_error(what, " ", file.string(), ": there is no such file");
  if (std::filesystem::is_directory(file, ignored))
    throw_user_error(what, " ", file.string(), ": is a folder; name ", wanted);
  const GzFile input(gzopen(file.c_str(), "rb"));
  if (!input) throw_user_error(what, " ", file.string(), ": cannot be read: ", std::strerror(errno));
  std::array<char, 1 << 16> buffer;
  for (;;) {
    const int count = gzread(input.get(), buffer.data(), buffer.size());
    int status = Z_OK;
    const char* message = gzerror(input.get(), &status);
    if (count < 0 || status == Z_BUF_ERROR) {
      throw_user_error(what, " ", file.string(), ": damaged gzip data (",
                       status == Z_BUF_ERROR ? "the file is cut off" : message,
                       "); copy or compress it again");
    }
    if (count == 0) return;
    on_piece(std::string_view(buffer.data(), static_cast<size_t>(count)));
  }
}

std::string shown_text(std::string_view text) {
  constexpr size_t kMax = 40;
  std::string shown;
  for (const char c : text.substr(0, kMax)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  return "'" + shown + (text.size() > kMax ? "...'" : "'");
}

std::string_view trimmed(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace moebius
