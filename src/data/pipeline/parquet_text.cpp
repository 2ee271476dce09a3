#include "data/pipeline/parquet_text.h"

#include <snappy.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/concat.h"
#include "data/pipeline/byte_source.h"
#include "data/pipeline/thrift_reader.h"

namespace moebius::data {
namespace {

constexpr std::string_view kParquetMagic = "PAR1";
constexpr int64_t kMostRows = int64_t{1} << 27;  // of a row group
constexpr size_t kMostText = size_t{1} << 34;    // bytes of a row group: a few values can stand often
constexpr int kByteArray = 6, kRequired = 0, kOptional = 1;
constexpr int kPlain = 0, kPlainDictionary = 2, kRleDictionary = 8;
enum PageKind { kDataPage = 0, kDictionaryPage = 2, kDataPageV2 = 3 };

[[noreturn]] void damaged(const char* what) {
  throw DamagedInput(concat("damaged Parquet data (", what, ")"));
}

uint32_t take_u32(std::string_view& bytes) {
  if (bytes.size() < 4) damaged("a page ends early");
  uint32_t value;
  std::memcpy(&value, bytes.data(), 4);
  bytes.remove_prefix(4);
  return value;
}

// The hybrid of run lengths and bit-packed groups of 8.
class HybridReader {
 public:
  HybridReader(std::string_view bytes, int width) : bytes_(bytes), width_(width) {
    if (width < 0 || width > 32) damaged("a bit width");
  }
  uint32_t next() {
    if (width_ == 0) return 0;
    while (left_ == 0) start_run();
    --left_;
    if (!is_packed_) return value_;
    uint64_t value = 0;
    for (int bit = 0; bit < width_; ++bit, ++bit_at_)
      value |= static_cast<uint64_t>((static_cast<uint8_t>(packed_[bit_at_ / 8]) >> (bit_at_ % 8)) & 1)
               << bit;
    return static_cast<uint32_t>(value);
  }

 private:
  void start_run() {
    uint64_t head = 0;
    for (int shift = 0;; shift += 7) {
      if (bytes_.empty() || shift > 35) damaged("levels or indices end early");
      const auto next = static_cast<uint8_t>(bytes_[0]);
      bytes_.remove_prefix(1);
      head |= static_cast<uint64_t>(next & 0x7F) << shift;
      if (next < 0x80) break;
    }
    is_packed_ = (head & 1) != 0;
    left_ = head >> 1;
    if (is_packed_) {
      const uint64_t size = left_ * static_cast<uint64_t>(width_);
      left_ *= 8;
      // A writer may leave out the end of the last group.
      packed_ = std::string(bytes_.substr(0, std::min<uint64_t>(size, bytes_.size())));
      if (size > bytes_.size() + static_cast<uint64_t>(width_)) damaged("levels or indices end early");
      packed_.resize(size);
      bytes_.remove_prefix(std::min<uint64_t>(size, bytes_.size()));
      bit_at_ = 0;
      return;
    }
    const size_t size = static_cast<size_t>(width_ + 7) / 8;
    if (bytes_.size() < size) damaged("levels or indices end early");
    value_ = 0;
    for (size_t i = 0; i < size; ++i)
      value_ |= static_cast<uint32_t>(static_cast<uint8_t>(bytes_[i])) << (8 * i);
    bytes_.remove_prefix(size);
  }

  std::string_view bytes_;
  int width_;
  uint64_t left_ = 0;
  bool is_packed_ = false;
  uint32_t value_ = 0;
  std::string packed_;
  size_t bit_at_ = 0;
};

std::string_view take_value(std::string_view& bytes) {
  const uint32_t size = take_u32(bytes);
  if (size > bytes.size()) damaged("a value ends early");
  const std::string_view value = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return value;
}

std::string decompress(std::string_view bytes, int codec, size_t size) {
  constexpr size_t kMostPage = size_t{1} << 31;
  if (size > kMostPage) damaged("the size of a page");
  std::string out;
  if (codec == 0) return std::string(bytes);
  if (codec == 1) {
    size_t told = 0;
    if (!snappy::GetUncompressedLength(bytes.data(), bytes.size(), &told) || told != size ||
        !snappy::Uncompress(bytes.data(), bytes.size(), &out)) {
      damaged("Snappy");
    }
    return out;
  }
  const auto source = open_bytes(bytes, codec == 2 ? Compression::gzip : Compression::zstd);
  // Not trusted before it is there: a damaged size must not take all memory.
  while (out.size() < size) {
    const size_t had = out.size(), want = std::min(size - had, std::max<size_t>(had, 1 << 20));
    out.resize(had + want);
    const size_t count = source->read(out.data() + had, want);
    out.resize(had + count);
    if (count == 0) damaged("a page is shorter than it says");
  }
  return out;
}

struct PageHeader {
  int64_t kind = -1, uncompressed = 0, compressed = 0;
  int64_t num_values = 0, encoding = 0;
  int64_t definition_bytes = 0, repetition_bytes = 0;  // of a second-version page
  bool is_compressed = true;
};

PageHeader read_header(ThriftReader& reader) {
  PageHeader header;
  const auto inner = [&](bool is_v2) {
    reader.structure([&](int id, int type) {
      if (id == 1) return header.num_values = reader.integer(), true;
      if (id == (is_v2 ? 4 : 2)) return header.encoding = reader.integer(), true;
      if (is_v2 && id == 5) return header.definition_bytes = reader.integer(), true;
      if (is_v2 && id == 6) return header.repetition_bytes = reader.integer(), true;
      if (is_v2 && id == 7) return header.is_compressed = type == ThriftReader::kTrue, true;
      return false;
    });
    return true;
  };
  reader.structure([&](int id, int) {
    if (id == 1) return header.kind = reader.integer(), true;
    if (id == 2) return header.uncompressed = reader.integer(), true;
    if (id == 3) return header.compressed = reader.integer(), true;
    if (id == 5 || id == 7) return inner(false);
    return id == 8 && inner(true);
  });
  if (header.uncompressed < 0 || header.compressed < 0 || header.num_values < 0) damaged("a page header");
  return header;
}

}  // namespace

ParquetText::ParquetText(std::string_view bytes, const std::string& column) : bytes_(bytes) {
  if (bytes.size() < 12 || !bytes.starts_with(kParquetMagic) || !bytes.ends_with(kParquetMagic))
    throw DamagedInput("not a Parquet file, or cut off");
  std::string_view tail = bytes.substr(bytes.size() - 8);
  const uint32_t size = take_u32(tail);
  if (size > bytes.size() - 12) damaged("the size of the footer");
  find_column(bytes.substr(bytes.size() - 8 - size, size), column);
}

void ParquetText::find_column(std::string_view footer, const std::string& column) {
  ThriftReader reader(footer);
  int64_t kind = -1, repetition = -1;
  bool found = false;
  const auto schema_element = [&] {
    std::string_view name;
    int64_t element_kind = -1, element_repetition = kRequired;
    reader.structure([&](int id, int) {
      if (id == 1) return element_kind = reader.integer(), true;
      if (id == 3) return element_repetition = reader.integer(), true;
      if (id == 4) return name = reader.binary(), true;
      return false;
    });
    if (found || name != column) return;
    found = true;
    kind = element_kind;
    repetition = element_repetition;
  };
  const auto column_chunk = [&](Chunk& group) {
    Chunk chunk;
    bool is_it = false;
    int64_t data = 0, dictionary = 0;
    const auto metadata = [&] {
      reader.structure([&](int id, int) {
        if (id == 3) {
          int depth = 0;
          reader.list(ThriftReader::kBinary, [&] { is_it = reader.binary() == column && depth++ == 0; });
          return true;
        }
        if (id == 4) return chunk.codec = static_cast<int>(reader.integer()), true;
        if (id == 5) return chunk.num_values = reader.integer(), true;
        if (id == 7) return chunk.size = reader.integer(), true;
        if (id == 9) return data = reader.integer(), true;
        if (id == 11) return dictionary = reader.integer(), true;
        return false;
      });
      return true;
    };
    reader.structure([&](int id, int) { return id == 3 && metadata(); });
    if (!is_it) return;
    chunk.begin = dictionary > 0 ? std::min(dictionary, data) : data;
    group = chunk;
  };
  reader.structure([&](int id, int) {
    if (id == 2) return reader.list(ThriftReader::kStruct, schema_element), true;
    if (id != 4) return false;
    reader.list(ThriftReader::kStruct, [&] {
      Chunk& group = groups_.emplace_back();
      reader.structure([&](int field, int) {
        return field == 1 && (reader.list(ThriftReader::kStruct, [&] { column_chunk(group); }), true);
      });
    });
    return true;
  });
  if (!found) throw DamagedInput(concat("the Parquet file has no column '", column, "'"));
  if (kind != kByteArray || (repetition != kRequired && repetition != kOptional))
    throw DamagedInput(concat("column '", column, "' of the Parquet file is no plain text column"));
  is_optional_ = repetition == kOptional;
  for (const Chunk& group : groups_) {
    const auto size = static_cast<int64_t>(bytes_.size());
    if (group.begin < 4 || group.size <= 0 || group.begin > size || group.size > size - group.begin ||
        group.num_values < 0 || group.num_values > kMostRows)
      damaged("the place of a column");
    if (group.codec != 0 && group.codec != 1 && group.codec != 2 && group.codec != 6)
      throw DamagedInput(concat("the Parquet file is compressed with codec ", group.codec,
                                "; Snappy, gzip and Zstandard are read"));
  }
}

void ParquetText::read(int64_t row_group, std::string& text, std::vector<uint64_t>& ends) const {
  const Chunk& chunk = groups_[static_cast<size_t>(row_group)];
  std::string_view rest = bytes_.substr(static_cast<size_t>(chunk.begin), static_cast<size_t>(chunk.size));
  std::string dictionary_page;
  std::vector<std::string_view> dictionary;
  text.clear();
  ends.clear();
  while (static_cast<int64_t>(ends.size()) < chunk.num_values) {
    ThriftReader reader(rest);
    const PageHeader header = read_header(reader);
    rest.remove_prefix(reader.position());
    if (static_cast<size_t>(header.compressed) > rest.size()) damaged("a page ends early");
    std::string_view page = rest.substr(0, static_cast<size_t>(header.compressed));
    rest.remove_prefix(page.size());
    if (header.kind != kDataPage && header.kind != kDictionaryPage && header.kind != kDataPageV2) continue;
    // Levels of a second-version page stand uncompressed before its values.
    const int64_t levels = header.kind == kDataPageV2 ? header.definition_bytes + header.repetition_bytes : 0;
    if (header.definition_bytes < 0 || header.repetition_bytes != 0 || levels > header.compressed ||
        levels > header.uncompressed) {
      damaged("the levels of a page");
    }
    const auto cut = static_cast<size_t>(levels);
    std::string plain(page.substr(0, cut));
    plain += decompress(page.substr(cut), header.is_compressed ? chunk.codec : 0,
                        static_cast<size_t>(header.uncompressed) - cut);
    if (header.kind == kDictionaryPage) {
      dictionary_page = std::move(plain);
      std::string_view values = dictionary_page;
      dictionary.clear();
      for (int64_t i = 0; i < header.num_values; ++i) dictionary.push_back(take_value(values));
      continue;
    }
    if (header.num_values == 0 || header.num_values > chunk.num_values - static_cast<int64_t>(ends.size()))
      damaged("the number of values of a page");
    if (header.kind == kDataPage && is_optional_) {
      std::string_view head = plain;
      const uint32_t size = take_u32(head);
      if (size > head.size()) damaged("the levels of a page");
      plain.erase(0, 4);
      read_page(plain, size, header.num_values, static_cast<int>(header.encoding), dictionary, text, ends);
    } else {
      read_page(plain, cut, header.num_values, static_cast<int>(header.encoding), dictionary, text, ends);
    }
  }
}

void ParquetText::read_page(std::string_view page, size_t level_bytes, int64_t num_values, int encoding,
                            const std::vector<std::string_view>& dictionary, std::string& text,
                            std::vector<uint64_t>& ends) const {
  HybridReader levels(page.substr(0, level_bytes), is_optional_ ? 1 : 0);
  std::string_view values = page.substr(level_bytes);
  const bool is_indexed = encoding == kPlainDictionary || encoding == kRleDictionary;
  if (!is_indexed && encoding != kPlain)
    throw DamagedInput(
        concat("the Parquet file has text in encoding ", encoding, "; plain and dictionary are read"));
  int width = 0;
  if (is_indexed && !values.empty()) {
    width = static_cast<uint8_t>(values[0]);
    values.remove_prefix(1);
  }
  HybridReader indices(is_indexed ? values : std::string_view(), width);
  for (int64_t i = 0; i < num_values; ++i) {
    if (!is_optional_ || levels.next() == 1) {
      if (is_indexed) {
        const uint32_t index = indices.next();
        if (index >= dictionary.size()) damaged("an index behind the end of the dictionary");
        text += dictionary[index];
      } else {
        text += take_value(values);
      }
    }
    if (text.size() > kMostText) damaged("a row group of more than 16 GiB of text");
    ends.push_back(text.size());
  }
}

}  // namespace moebius::data
