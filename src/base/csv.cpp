#include "base/csv.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/distance.h"
#include "base/error.h"
#include "base/text_file.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

// Far above any trace (a year of 5-minute values has 4 MB); a decompression bomb stops here.
constexpr size_t kMaxBytes = size_t{1} << 30;

// Bounds in messages: as short as they can be.
std::string shortest(double value) {
  std::array<char, 32> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end};
}

std::string whole_text(const fs::path& file, std::string_view what) {
  std::string contents;
  read_text_pieces(file, what, "a CSV file, plain or .gz", [&](std::string_view piece) {
    if (contents.size() + piece.size() > kMaxBytes) {
      throw_user_error(what, " ", file.string(), ": holds more than ", kMaxBytes,
                       " bytes; give a part of it");
    }
    contents += piece;
  });
  return contents;
}

}  // namespace

CsvTable::CsvTable(fs::path file, std::string what)
    : file_(std::move(file)), what_(std::move(what)), contents_(whole_text(file_, what_)), rest_(contents_) {
  if (rest_.substr(0, 3) == "\xef\xbb\xbf") rest_.remove_prefix(3);
  std::string_view header;
  if (!next_line(&header) || trimmed(header).empty()) {
    throw_user_error(name(), ": has no header line; the first line names the columns");
  }
  split(header);
  for (const std::string_view field : fields_) {
    if (std::find(columns_.begin(), columns_.end(), field) != columns_.end()) {
      throw_user_error(name(), ", line 1: column ", shown_text(field),
                       " appears twice; each column needs a name of its own");
    }
    columns_.emplace_back(field);
  }
}

std::optional<size_t> CsvTable::find_column(std::string_view name) const {
  const auto found = std::find(columns_.begin(), columns_.end(), name);
  if (found == columns_.end()) return std::nullopt;
  return static_cast<size_t>(found - columns_.begin());
}

size_t CsvTable::column(std::string_view wanted) const {
  if (const auto found = find_column(wanted)) return *found;
  std::string present;
  for (const std::string& each : columns_) present += (present.empty() ? "" : ", ") + shown_text(each);
  const auto nearest = nearest_name(wanted, columns_);
  throw_user_error(
      name(), ", line 1: there is no column '", wanted, "' among ", present,
      nearest ? "; is it " + shown_text(*nearest) + "?" : "; add it to the header and to every row");
}

bool CsvTable::next() {
  std::string_view line;
  if (!next_line(&line)) return false;
  if (trimmed(line).empty()) {
    // Only the end of the file may be empty.
    const int64_t empty = line_;
    std::string_view later;
    while (next_line(&later)) {
      if (!trimmed(later).empty()) {
        throw_user_error(name(), ", line ", empty,
                         ": is empty between rows; remove it, or add the row that is missing");
      }
    }
    return false;
  }
  split(line);
  if (fields_.size() != columns_.size()) {
    throw_user_error(name(), ", line ", line_, ": ", shown_text(line), " has ", fields_.size(),
                     " fields, but the header names ", columns_.size(), " columns");
  }
  return true;
}

double CsvTable::number(size_t column, double least, double most) const {
  const std::string_view field = fields_[column];
  if (field.empty()) refuse(column, "is empty; give a number or remove the row");
  double value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  if (error == std::errc::invalid_argument || end != field.data() + field.size())
    refuse(column, "is not a number");
  if (error == std::errc::result_out_of_range || !std::isfinite(value))
    refuse(column, "is not a finite number");
  if (value < least || value > most) {
    refuse(column, concat("is not in [", shortest(least), ", ", shortest(most), "]"));
  }
  return value;
}

int64_t CsvTable::whole(size_t column, int64_t least, int64_t most) const {
  const std::string_view field = fields_[column];
  if (field.empty()) refuse(column, "is empty; give a whole number or remove the row");
  int64_t value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  if (error == std::errc::invalid_argument || end != field.data() + field.size())
    refuse(column, "is not a whole number");
  if (error == std::errc::result_out_of_range || value < least || value > most) {
    refuse(column, concat("is not in [", least, ", ", most, "]"));
  }
  return value;
}

void CsvTable::refuse(size_t column, const std::string& reason) const {
  throw_user_error(name(), ", line ", line_, ", ", columns_[column], ": ", shown_text(fields_[column]), " ",
                   reason);
}

std::string CsvTable::name() const {
  return what_ + " " + file_.string();
}

bool CsvTable::next_line(std::string_view* line) {
  if (rest_.empty()) return false;
  const size_t end = rest_.find('\n');
  *line = rest_.substr(0, end);
  rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 1);
  ++line_;
  return true;
}

void CsvTable::split(std::string_view line) {
  fields_.clear();
  for (;;) {
    const size_t comma = line.find(',');
    fields_.push_back(trimmed(line.substr(0, comma)));
    if (comma == std::string_view::npos) return;
    line.remove_prefix(comma + 1);
  }
}

}  // namespace moebius
