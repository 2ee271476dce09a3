#include "data/length_list.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include "data/test_files.h"

namespace moebius::data {
namespace {

class LengthList : public testing::Test {
 protected:
  std::string error_of(const std::string& text) {
    const auto file = write_text(folder / "list.txt", text);
    const std::string error = user_error([&] { read_lengths(file); });
    const size_t at = error.find(file.string());
    return at == std::string::npos ? error : error.substr(at + file.string().size());
  }
  std::filesystem::path compressed(const std::string& text) {
    const auto file = folder / "list.txt.gz";
    gzFile out = gzopen(file.c_str(), "wb");
    gzwrite(out, text.data(), text.size());
    gzclose(out);
    return file;
  }
  TemporaryFolder folder;
};

TEST_F(LengthList, reads_plain_and_compressed_text) {
  const std::vector<int64_t> expected{12, 0, 7};
  EXPECT_EQ(read_lengths(write_text(folder / "a", "12\n0\n7\n")), expected);
  EXPECT_EQ(read_lengths(write_text(folder / "b", " 12\r\n\n0\t\r\n7")), expected);
  EXPECT_EQ(read_lengths(compressed("12\n0\n7\n")), expected);
  std::string many;
  for (int i = 0; i < 50000; ++i) many += "123456\n";
  EXPECT_EQ(read_lengths(compressed(many)), std::vector<int64_t>(50000, 123456));
}

TEST_F(LengthList, quotes_the_line_that_is_no_length) {
  const std::string end = "; a list of lengths has one number of tokens per line";
  EXPECT_EQ(error_of("1\n\n2 3\n"), ":3: '2 3' is not a whole number" + end);
  EXPECT_EQ(error_of("1.5\n"), ":1: '1.5' is not a whole number" + end);
  EXPECT_EQ(error_of("1\n-4\n"), ":2: '-4' is negative" + end);
  EXPECT_EQ(error_of("99999999999999999999\n"),
            ":1: '99999999999999999999' is more than 1099511627776 tokens" + end);
  EXPECT_EQ(error_of("1099511627777\n"), ":1: '1099511627777' is more than 1099511627776 tokens" + end);
  EXPECT_EQ(error_of("caf\xc3\xa9\x01 " + std::string(99, 'x')),
            ":1: 'caf??? xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...' is not a whole number" + end);
  EXPECT_EQ(error_of(std::string(300000, '1')).substr(0, 8), ":1: '111");
}

TEST_F(LengthList, refuses_files_that_hold_nothing_or_are_damaged) {
  const std::string nothing = ": holds no number; give one number of tokens per line";
  EXPECT_EQ(error_of(""), nothing);
  EXPECT_EQ(error_of("\n \n"), nothing);
  EXPECT_EQ(user_error([&] { read_lengths(folder / "no"); }),
            "list of lengths " + (folder / "no").string() + ": there is no such file");
  EXPECT_EQ(
      user_error([&] { read_lengths(folder.path()); }),
      "list of lengths " + folder.path().string() + ": is a folder; name a file of numbers, one per line");

  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i * i % 977) + "\n";
  std::string bytes = read_file(compressed(text));
  const auto cut = write_text(folder / "cut.gz", bytes.substr(0, bytes.size() / 2));
  EXPECT_EQ(user_error([&] { read_lengths(cut); }),
            "list of lengths " + cut.string() +
                ": damaged gzip data (the file is cut off); copy or compress it again");
  for (size_t i = bytes.size() / 2; i < bytes.size() / 2 + 20; ++i) bytes[i] ^= 0x55;
  const auto damaged = write_text(folder / "damaged.gz", bytes);
  const std::string error = user_error([&] { read_lengths(damaged); });
  EXPECT_NE(error.find("damaged"), std::string::npos) << error;
}

TEST(LengthSummary, counts_classes_of_powers_of_two) {
  const LengthSummary summary = summarize({9, 0, 8, 15, 3, 0, 16, 4});
  EXPECT_EQ(summary.documents, 8);
  EXPECT_EQ(summary.empty_documents, 2);
  EXPECT_EQ(summary.tokens, 55);
  EXPECT_EQ(summary.shortest, 3);
  EXPECT_EQ(summary.median, 8);
  EXPECT_EQ(summary.p90, 16);
  EXPECT_EQ(summary.longest, 16);
  std::vector<std::vector<int64_t>> classes;
  for (const LengthClass& each : summary.classes) {
    classes.push_back({each.from, each.to, each.documents, each.tokens});
  }
  EXPECT_EQ(classes,
            (std::vector<std::vector<int64_t>>{{2, 4, 1, 3}, {4, 8, 1, 4}, {8, 16, 3, 32}, {16, 32, 1, 16}}));
  EXPECT_TRUE(summarize({0}).classes.empty());
}

}  // namespace
}  // namespace moebius::data
