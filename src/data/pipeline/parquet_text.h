// One text column of an Apache Parquet file (format 2): a top-level byte-array column, required or optional,
// with plain or dictionary encoding, in pages that are uncompressed or compressed with Snappy, gzip or
// Zstandard, as pandas, pyarrow, DuckDB and Spark write text by default. Everything else is refused by name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::data {

class ParquetText {
 public:
  // `bytes` is the whole file and outlives the object. DamagedInput (byte_source.h) when the footer cannot be
  // read or the file has no such column.
  ParquetText(std::string_view bytes, const std::string& column);

  int64_t num_row_groups() const { return static_cast<int64_t>(groups_.size()); }
  // The values of a row group one after the other, and where each ends; a value that is missing is empty.
  // DamagedInput when it cannot be read.
  void read(int64_t row_group, std::string& text, std::vector<uint64_t>& ends) const;

 private:
  struct Chunk {
    int64_t begin = 0, size = 0, num_values = 0;
    int codec = 0;
  };
  void find_column(std::string_view footer, const std::string& column);
  // `page` is decompressed: levels, then values.
  void read_page(std::string_view page, size_t level_bytes, int64_t num_values, int encoding,
                 const std::vector<std::string_view>& dictionary, std::string& text,
                 std::vector<uint64_t>& ends) const;

  std::string_view bytes_;
  bool is_optional_ = false;
  std::vector<Chunk> groups_;
};

}  // namespace moebius::data
