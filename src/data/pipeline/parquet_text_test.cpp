#include "data/pipeline/parquet_text.h"

#include <random>

#include "data/corpus_builder.h"
#include "data/pipeline/byte_source.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

std::string fixture(const std::string& name) {
  return read_file(source_file("tests/data/parquet/" + name + ".parquet"));
}

// As tools/fixtures/make_parquet_texts.py wrote them; missing values read as empty.
std::vector<std::string> expected_texts() {
  std::vector<std::string> texts;
  for (int row = 0; row < 300; ++row) {
    texts.push_back(row % 17 == 0  ? ""
                    : row % 5 == 0 ? "the same text"
                                   : "row " + std::to_string(row) + " é😀 " +
                                         std::string(static_cast<size_t>(row % 40), 'x'));
  }
  return texts;
}

std::vector<std::string> all_texts(std::string_view bytes) {
  const ParquetText file(bytes, "text");
  std::vector<std::string> texts;
  for (int64_t group = 0; group < file.num_row_groups(); ++group) {
    std::string text;
    std::vector<uint64_t> ends;
    file.read(group, text, ends);
    uint64_t begin = 0;
    for (const uint64_t end : ends) {
      texts.push_back(text.substr(begin, end - begin));
      begin = end;
    }
  }
  return texts;
}

template <class F>
std::string damage(F&& action) {
  try {
    action();
  } catch (const DamagedInput& error) {
    return error.what();
  }
  return "no error";
}

TEST(ParquetText, reads_the_usual_encodings_and_codecs) {
  for (const char* name :
       {"snappy_dictionary", "snappy_dictionary_v2", "zstd_plain_v2", "gzip_pages", "none_required"}) {
    EXPECT_EQ(all_texts(fixture(name)), expected_texts()) << name;
  }
  EXPECT_EQ(ParquetText(fixture("snappy_dictionary"), "text").num_row_groups(), 3);
}

TEST(ParquetText, names_what_it_does_not_read) {
  EXPECT_EQ(damage([] { all_texts(fixture("brotli")); }),
            "the Parquet file is compressed with codec 4; Snappy, gzip and Zstandard are read");
  EXPECT_EQ(damage([] { all_texts(fixture("delta")); }),
            "the Parquet file has text in encoding 6; plain and dictionary are read");
  EXPECT_EQ(damage([] { ParquetText(fixture("gzip_pages"), "body"); }),
            "the Parquet file has no column 'body'");
  EXPECT_EQ(damage([] { ParquetText(fixture("gzip_pages"), "id"); }),
            "column 'id' of the Parquet file is no plain text column");
  EXPECT_EQ(damage([] { ParquetText("PAR1", "text"); }), "not a Parquet file, or cut off");
}

TEST(ParquetText, damaged_files_are_refused_or_read) {
  std::mt19937 random(12);
  int refused = 0;
  for (const char* name : {"snappy_dictionary", "zstd_plain_v2", "gzip_pages", "none_required"}) {
    const std::string good = fixture(name);
    for (int i = 0; i < 1500; ++i) {
      std::string damaged = good;
      for (size_t edits = 1 + random() % 3; edits > 0; --edits) {
        // Most of them in the footer.
        const size_t reach = random() % 2 == 0 ? damaged.size() : std::min<size_t>(damaged.size(), 400);
        const size_t at = damaged.size() - 1 - random() % reach;
        if (random() % 3 == 0) {
          damaged.erase(at, 1 + random() % 4);
        } else {
          damaged[at] = static_cast<char>(random());
        }
        if (damaged.empty()) damaged = "P";
      }
      try {
        const auto texts = all_texts(damaged);
        ASSERT_LE(texts.size(), 1u << 20);
      } catch (const DamagedInput& error) {
        ++refused;
        ASSERT_LT(std::string(error.what()).size(), 500u);
      }
    }
  }
  EXPECT_GT(refused, 1500);
}

TEST(ParquetText, a_corpus_has_its_rows_as_documents) {
  const TemporaryFolder folder;
  CorpusBuild build;
  build.tokenizer = make_bytes_tokenizer();
  build.files = {source_file("tests/data/parquet/snappy_dictionary.parquet")};
  build.prefix = folder / "out";
  build.duplicates = Duplicates::exact;
  const BuildReport report = build_corpus(build);
  EXPECT_EQ(report.counters.records, 300);
  EXPECT_EQ(report.counters.empty, 18);
  EXPECT_EQ(report.counters.exact_duplicates, 55);
  const auto corpus = Corpus::open(build.prefix);
  EXPECT_EQ(corpus->num_documents(), 300 - 18 - 55);
  std::vector<int32_t> ids;
  corpus->read(corpus->document(0), 256, ids);
  EXPECT_EQ(build.tokenizer->decode(ids), expected_texts()[1]);
  EXPECT_TRUE(corpus_is_current(build));

  build.text_field = "body";
  EXPECT_EQ(user_error([&] { build_corpus(build); }),
            build.files[0].string() +
                ": the Parquet file has no column 'body'; mend it, or read up to there (moebius data "
                "build --on-error skip)");
}

}  // namespace
}  // namespace moebius::data
