#include "base/csv.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

class Csv : public testing::Test {
 protected:
  std::filesystem::path file(const std::string& text) {
    write_file_atomic(folder / "t.csv", text);
    return folder / "t.csv";
  }
  // What reading every row as (a in [0, 9], b whole in [1, 5]) says, without "table FILE".
  std::string error_of(const std::string& text) {
    const auto path = file(text);
    const std::string error = message_of<UserError>([&] {
      CsvTable table(path, "table");
      const size_t a = table.column("a"), b = table.column("b");
      while (table.next()) {
        table.number(a, 0, 9);
        table.whole(b, 1, 5);
      }
    });
    const std::string name = "table " + path.string();
    return error.rfind(name, 0) == 0 ? error.substr(name.size()) : error;
  }
  TestFolder folder;
};

TEST_F(Csv, reads_plain_and_compressed_tables) {
  const std::string text =
      "\xef\xbb\xbf"
      "a, b\r\n1.5,2\r\n 3e0 ,4\n\n";
  const auto zipped = folder / "t.csv.gz";
  gzFile out = gzopen(zipped.c_str(), "wb");
  gzwrite(out, text.data(), text.size());
  gzclose(out);
  for (const auto& path : {file(text), zipped}) {
    CsvTable table(path, "table");
    EXPECT_EQ(table.find_column("c"), std::nullopt);
    const size_t a = table.column("a"), b = table.column("b");
    ASSERT_TRUE(table.next());
    EXPECT_EQ(table.number(a, 0, 9), 1.5);
    EXPECT_EQ(table.whole(b, 1, 5), 2);
    ASSERT_TRUE(table.next());
    EXPECT_EQ(table.number(a, 0, 9), 3);
    EXPECT_EQ(table.line(), 3);
    EXPECT_EQ(table.text(b), "4");
    EXPECT_FALSE(table.next());
  }
}

TEST_F(Csv, names_line_column_and_value) {
  EXPECT_EQ(error_of("a,b\n1,1\nx,1\n"), ", line 3, a: 'x' is not a number");
  EXPECT_EQ(error_of("a,b\n1 2,1\n"), ", line 2, a: '1 2' is not a number");
  EXPECT_EQ(error_of("a,b\n,1\n"), ", line 2, a: '' is empty; give a number or remove the row");
  EXPECT_EQ(error_of("a,b\nnan,1\n"), ", line 2, a: 'nan' is not a finite number");
  EXPECT_EQ(error_of("a,b\n1e999,1\n"), ", line 2, a: '1e999' is not a finite number");
  EXPECT_EQ(error_of("a,b\n-0.5,1\n"), ", line 2, a: '-0.5' is not in [0, 9]");
  EXPECT_EQ(error_of("a,b\n1,1.5\n"), ", line 2, b: '1.5' is not a whole number");
  EXPECT_EQ(error_of("a,b\n1,6\n"), ", line 2, b: '6' is not in [1, 5]");
  EXPECT_EQ(error_of("a,b\n1,99999999999999999999\n"),
            ", line 2, b: '99999999999999999999' is not in [1, 5]");
  EXPECT_EQ(error_of("a,b\n1,2,3\n"), ", line 2: '1,2,3' has 3 fields, but the header names 2 columns");
  EXPECT_EQ(error_of("a,b\n1,2\n\n3,4\n"),
            ", line 3: is empty between rows; remove it, or add the row that is missing");
  EXPECT_EQ(error_of("bb,a\n"), ", line 1: there is no column 'b' among 'bb', 'a'; is it 'bb'?");
  EXPECT_EQ(error_of("a,a\n"), ", line 1: column 'a' appears twice; each column needs a name of its own");
  EXPECT_EQ(error_of(""), ": has no header line; the first line names the columns");
}

TEST_F(Csv, refuses_files_that_cannot_be_read) {
  EXPECT_EQ(message_of<UserError>([&] { CsvTable(folder / "no.csv", "jobs"); }),
            "jobs " + (folder / "no.csv").string() + ": there is no such file");
  EXPECT_EQ(message_of<UserError>([&] { CsvTable(folder.path(), "jobs"); }),
            "jobs " + folder.path().string() + ": is a folder; name a CSV file, plain or .gz");
  const auto zipped = folder / "cut.gz";
  gzFile out = gzopen(zipped.c_str(), "wb");
  for (int i = 0; i < 20000; ++i) gzprintf(out, "%d,%d\n", i, i * i % 977);
  gzclose(out);
  const std::string bytes = read_file(zipped);
  write_file_atomic(zipped, bytes.substr(0, bytes.size() / 2));
  EXPECT_EQ(
      message_of<UserError>([&] { CsvTable(zipped, "jobs"); }),
      "jobs " + zipped.string() + ": damaged gzip data (the file is cut off); copy or compress it again");
}

}  // namespace
}  // namespace moebius
