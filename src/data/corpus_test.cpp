#include "data/corpus.h"

#include <cstring>

#include "data/corpus_builder.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

// Two documents of three and two tokens, with bytes as tokens.
fs::path build_small(const TemporaryFolder& folder) {
  CorpusBuild build;
  build.files = {write_text(folder / "a.txt", "abc"), write_text(folder / "b.txt", "de")};
  build.tokenizer = make_bytes_tokenizer();
  build.prefix = folder / "small";
  build_corpus(build);
  return build.prefix;
}

void overwrite(const fs::path& path, size_t offset, const std::string& bytes) {
  std::string content = read_file(path);
  content.replace(offset, bytes.size(), bytes);
  write_text(path, content);
}

std::string open_error(const fs::path& prefix) {
  return user_error([&] { Corpus::open(prefix); });
}

template <class T>
std::string raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}

TEST(Corpus, files_are_megatrons_byte_for_byte) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  EXPECT_EQ(read_file(bin_path(prefix)), std::string("a\0b\0c\0d\0e\0", 10));
  const unsigned char expected[] = {
      'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0,                       // magic
      1,   0,   0,   0,   0,   0,   0,   0,                          // version
      8,                                                             // uint16
      2,   0,   0,   0,   0,   0,   0,   0,                          // sequences
      3,   0,   0,   0,   0,   0,   0,   0,                          // document indices
      3,   0,   0,   0,   2,   0,   0,   0,                          // lengths
      0,   0,   0,   0,   0,   0,   0,   0, 6, 0, 0, 0, 0, 0, 0, 0,  // byte offsets
      0,   0,   0,   0,   0,   0,   0,   0, 1, 0, 0, 0, 0, 0, 0, 0,
      2,   0,   0,   0,   0,   0,   0,   0  // first sequences and the end
  };
  EXPECT_EQ(read_file(idx_path(prefix)),
            std::string(reinterpret_cast<const char*>(expected), sizeof(expected)));
}

TEST(Corpus, opens_by_prefix_or_by_either_file) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  for (const fs::path& path : {prefix, idx_path(prefix), bin_path(prefix)}) {
    const auto corpus = Corpus::open(path);
    EXPECT_EQ(corpus->num_tokens(), 5);
    ASSERT_EQ(corpus->num_documents(), 2);
    EXPECT_EQ(corpus->document(0), (TokenRange{0, 3}));
    EXPECT_EQ(corpus->document(1), (TokenRange{3, 5}));
    EXPECT_EQ(corpus->document_at(2), 0);
    EXPECT_EQ(corpus->document_at(3), 1);
    std::vector<int32_t> ids{7};
    corpus->read({1, 4}, 256, ids);
    EXPECT_EQ(ids, (std::vector<int32_t>{7, 'b', 'c', 'd'}));
  }
}

TEST(Corpus, sidecar_says_where_it_comes_from_and_survives_a_round_trip) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  const CorpusInfo info = *Corpus::open(prefix)->info();
  EXPECT_EQ(info.tokenizer_fingerprint, "bytes-1");
  EXPECT_EQ(info.vocab_size, 256);
  EXPECT_EQ(info.text_bytes, 5);
  ASSERT_EQ(info.sources.size(), 2u);
  EXPECT_EQ(info.sources[0].path, (folder / "a.txt").string());
  EXPECT_EQ(info.sources[0].bytes, 3);
  EXPECT_EQ(to_json(parse_corpus_info(to_json(info), "x.json")), to_json(info));
  Corpus::open(prefix)->verify();
}

TEST(Corpus, int32_and_uint8_tokens_and_empty_documents_are_read) {
  const TemporaryFolder folder;
  for (const TokenType type : {TokenType::uint8, TokenType::uint16, TokenType::int32}) {
    CorpusWriter writer(folder / name_of(type), type);
    writer.end_document();
    writer.add(std::vector<int32_t>{1, 200});
    writer.end_document();
    writer.end_document();
    writer.add(std::vector<int32_t>{3});
    writer.end_document();
    writer.finish({});
    const auto corpus = Corpus::open(folder / name_of(type));
    EXPECT_EQ(corpus->type(), type);
    EXPECT_EQ(corpus->num_documents(), 4);
    EXPECT_EQ(corpus->document(2).size(), 0);
    EXPECT_EQ(corpus->document_at(0), 1);
    EXPECT_EQ(corpus->document_at(2), 3);
    std::vector<int32_t> ids;
    corpus->read({0, 3}, 256, ids);
    EXPECT_EQ(ids, (std::vector<int32_t>{1, 200, 3}));
  }
  EXPECT_EQ(token_type_for(65499), TokenType::uint16);
  EXPECT_EQ(token_type_for(65500), TokenType::int32);
}

TEST(Corpus, an_unfinished_build_leaves_nothing) {
  const TemporaryFolder folder;
  {
    CorpusWriter writer(folder / "half", TokenType::uint16);
    writer.add(std::vector<int32_t>{1, 2, 3});
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Corpus, one_of_another_program_needs_no_sidecar) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  fs::remove(info_path(prefix));
  const auto corpus = Corpus::open(prefix);
  EXPECT_FALSE(corpus->info().has_value());
  EXPECT_EQ(user_error([&] { corpus->verify(); }),
            "corpus " + prefix.string() + ": there is no " + info_path(prefix).string() +
                " with checksums to verify against; build the corpus with moebius data build");
}

TEST(Corpus, damaged_and_foreign_files_are_refused_by_file_field_found_and_expected) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  const fs::path idx = idx_path(prefix), bin = bin_path(prefix), json = info_path(prefix);
  const std::string good_idx = read_file(idx), good_bin = read_file(bin), good_json = read_file(json);
  const std::string rebuild =
      "; the file is damaged or cut short: build the corpus again (moebius data build)";
  const std::string at_idx = "corpus " + idx.string() + ": ", at_bin = "corpus " + bin.string() + ": ";

  write_text(idx, "MMID");
  EXPECT_EQ(open_error(prefix), at_idx + "its size in bytes is 4, expected at least 34" + rebuild);
  write_text(idx, "PK\x03\x04 and much more of a foreign file, say a zip archive");
  EXPECT_EQ(open_error(prefix),
            at_idx +
                "the magic is 'PK.. and ', expected 'MMIDIDX..'; this is no corpus index: give a "
                ".idx written by moebius data build or by Megatron");
  write_text(idx, good_idx);
  overwrite(idx, 9, raw<uint64_t>(2));
  EXPECT_EQ(open_error(prefix),
            at_idx +
                "the version is 2, expected 1; it was written by another program or a later "
                "version of the format");
  write_text(idx, good_idx);
  overwrite(idx, 17, raw<uint8_t>(7));
  EXPECT_EQ(open_error(prefix),
            at_idx +
                "the token type code is 7, expected 1 (uint8), 4 (int32) or 8 (uint16); corpora "
                "of other types cannot be read: build it again (moebius data build)");
  write_text(idx, good_idx.substr(0, good_idx.size() - 1));
  EXPECT_EQ(
      open_error(prefix),
      at_idx + "its size in bytes is 81, expected 34 + 12 x 2 sequences + 8 x 3 document indices" + rebuild);
  write_text(idx, good_idx);
  overwrite(idx, 18, raw<uint64_t>(UINT64_MAX / 12));
  EXPECT_EQ(open_error(prefix).substr(0, at_idx.size() + 17), at_idx + "its size in bytes");
  write_text(idx, good_idx);
  overwrite(idx, 34, raw<int32_t>(-3));
  EXPECT_EQ(open_error(prefix), at_idx + "the length of sequence 0 is -3, expected 0 or more" + rebuild);
  write_text(idx, good_idx);
  overwrite(idx, 50, raw<int64_t>(1 << 20));
  EXPECT_EQ(open_error(prefix), at_idx + "the offset of sequence 1 is 1048576, expected 6" + rebuild);
  write_text(idx, good_idx);
  overwrite(idx, 66, raw<int64_t>(9));
  EXPECT_EQ(open_error(prefix), at_idx + "document index 1 is 9, expected 0 to 2" + rebuild);
  write_text(idx, good_idx);
  overwrite(idx, 74, raw<int64_t>(1));
  EXPECT_EQ(open_error(prefix), at_idx + "document index 2 is 1, expected 2 to 2" + rebuild);
  write_text(idx, good_idx);

  write_text(bin, good_bin.substr(0, 7));
  EXPECT_EQ(open_error(prefix), at_bin + "its size in bytes is 7, expected 10" + rebuild);
  fs::remove(bin);
  EXPECT_EQ(open_error(prefix),
            at_bin + "there is no such file; build the corpus first (moebius data build)");
  write_text(bin, good_bin);

  write_text(json, "{");
  EXPECT_EQ(open_error(prefix),
            "corpus " + json.string() + ": not valid JSON; build the corpus again (moebius data build)");
  std::string other = good_json;
  other.replace(other.find("\"version\": 1"), 12, "\"version\": 9");
  write_text(json, other);
  EXPECT_EQ(
      open_error(prefix),
      "corpus " + json.string() + ": version is 9, expected 1; build the corpus again (moebius data build)");
  other = good_json;
  other.replace(other.find("\"num_tokens\": 5"), 15, "\"num_tokens\": 6");
  write_text(json, other);
  EXPECT_EQ(open_error(prefix),
            "corpus " + json.string() +
                ": num_tokens is 6, expected 5 (what the .bin and .idx beside it say); the three "
                "files do not belong together: build the corpus again (moebius data build)");
  other = good_json;
  other.replace(other.find("\"vocab_size\": 256"), 17, "\"vocab_size\": \"x\"");
  write_text(json, other);
  EXPECT_EQ(open_error(prefix),
            "corpus " + json.string() +
                ": vocab_size is \"x\", expected a whole number; build the corpus again (moebius "
                "data build)");
  write_text(json, good_json);
  EXPECT_EQ(open_error(prefix), "no error");
}

TEST(Corpus, verify_finds_one_changed_bit) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  overwrite(bin_path(prefix), 2, "c");
  const std::string message = user_error([&] { Corpus::open(prefix)->verify(); });
  EXPECT_EQ(message.substr(0, message.find("xxh3")),
            "corpus " + bin_path(prefix).string() + ": its checksum is ");
}

TEST(Corpus, an_id_outside_the_vocabulary_is_a_user_error) {
  const TemporaryFolder folder;
  const fs::path prefix = build_small(folder);
  std::vector<int32_t> ids;
  EXPECT_EQ(
      user_error([&] {
        Corpus::open(prefix)->read({1, 5}, 100, ids);
      }),
      "corpus " + bin_path(prefix).string() +
          ": token 3 is 100, expected 0 to 99; the corpus was made with another tokenizer, or the file is "
          "damaged (moebius data inspect --verify)");
}

}  // namespace
}  // namespace moebius::data
