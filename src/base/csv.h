// Strict tables of numbers: CSV with a header line, plain or compressed with gzip. Nothing is guessed: a row
// with a field too many, an empty field or a value that is no number is a UserError that names file, line,
// column and value. Quotes have no meaning; lines may end in CRLF; empty lines at the end of the file are
// passed over.
//
//   CsvTable table(path, "jobs");
//   const size_t arrival = table.column("arrival_s");
//   while (table.next()) use(table.number(arrival, 0, 1e12));
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moebius {

class CsvTable {
 public:
  CsvTable(std::filesystem::path file, std::string what);
  CsvTable(const CsvTable&) = delete;
  CsvTable& operator=(const CsvTable&) = delete;

  // Index of a column. column() refuses a table without it, naming the columns that are there.
  std::optional<size_t> find_column(std::string_view name) const;
  size_t column(std::string_view name) const;

  // Moves to the next row; false at the end.
  bool next();
  std::string_view text(size_t column) const { return fields_[column]; }
  // A finite number in [least, most].
  double number(size_t column, double least, double most) const;
  int64_t whole(size_t column, int64_t least, int64_t most) const;

  // UserError "jobs FILE, line 3, length_s: '-4' REASON".
  [[noreturn]] void refuse(size_t column, const std::string& reason) const;
  // "jobs FILE".
  std::string name() const;
  int64_t line() const { return line_; }
  const std::filesystem::path& file() const { return file_; }

 private:
  bool next_line(std::string_view* line);
  void split(std::string_view line);

  std::filesystem::path file_;
  std::string what_, contents_;
  std::string_view rest_;
  int64_t line_ = 0;
  std::vector<std::string> columns_;
  std::vector<std::string_view> fields_;
};

}  // namespace moebius
