#include "data/text.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace moebius::data {
namespace {

std::string message_of(std::string_view text) {
  try {
    check_text(text, "a.txt");
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Text, well_formed_utf8_is_accepted_up_to_its_end) {
  for (const std::string text : {"", "plain ascii that is longer than eight bytes", "äöü ß", "日本語",
                                 "🙂🙃", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF", "\xEE\x80\x80"}) {
    EXPECT_EQ(first_invalid_utf8(text), text.size()) << text;
  }
}

TEST(Text, ill_formed_utf8_is_found_at_its_first_byte) {
  struct Case {
    std::string text;
    size_t offset;
  };
  for (const Case& c : {Case{"ab\xFF", 2}, Case{"\x80", 0}, Case{"caf\xC3", 3}, Case{"\xC0\xAF", 0},
                        Case{"\xE0\x9F\xBF", 0}, Case{"\xED\xA0\x80", 0}, Case{"\xF0\x8F\xBF\xBF", 0},
                        Case{"\xF4\x90\x80\x80", 0}, Case{"12345678\xC3(", 8}, Case{"ä\xE2\x82(", 2}}) {
    EXPECT_EQ(first_invalid_utf8(c.text), c.offset) << testing::PrintToString(c.text);
  }
}

TEST(Text, unfinished_tail_counts_only_bytes_that_may_still_become_a_character) {
  EXPECT_EQ(unfinished_utf8_tail(""), 0u);
  EXPECT_EQ(unfinished_utf8_tail("abc"), 0u);
  EXPECT_EQ(unfinished_utf8_tail("ä"), 0u);
  EXPECT_EQ(unfinished_utf8_tail("a\xC3"), 1u);
  EXPECT_EQ(unfinished_utf8_tail("a\xE2\x82"), 2u);
  EXPECT_EQ(unfinished_utf8_tail("\xF0\x9F\x99"), 3u);
  EXPECT_EQ(unfinished_utf8_tail("a\x82\x82"), 0u);  // no lead byte
  EXPECT_EQ(unfinished_utf8_tail("\xED\xA0"), 0u);   // a surrogate can never finish
  EXPECT_EQ(unfinished_utf8_tail("\x80\x80\x80\x80"), 0u);
}

TEST(Text, replacement_keeps_what_is_well_formed) {
  EXPECT_EQ(to_valid_utf8("naïve 🙂"), "naïve 🙂");
  EXPECT_EQ(to_valid_utf8("a\xFF"
                          "b"),
            "a\uFFFD"
            "b");
  EXPECT_EQ(to_valid_utf8("a\xF0\x9F\x99"), "a\uFFFD");  // one unfinished character, one mark
  EXPECT_EQ(to_valid_utf8("\xE2\x82\xC3\xA4"), "\uFFFDä");
  EXPECT_EQ(to_valid_utf8("\xC0\xAF"), "\uFFFD\uFFFD");
}

TEST(Text, user_errors_name_file_offset_reason_and_way_out) {
  EXPECT_EQ(message_of("fine\n"), "accepted");
  EXPECT_EQ(message_of(""), "a.txt: the file is empty; give a text file with some text in it");
  EXPECT_EQ(
      message_of(std::string_view("ab\0c", 4)),
      "a.txt: NUL byte at offset 2, so this is binary data or UTF-16, not UTF-8 text; give plain text (for "
      "UTF-16: iconv -f utf-16 -t utf-8)");
  EXPECT_EQ(message_of("caf\xE9 au lait"),
            "a.txt: byte 0xE9 at offset 3 is not UTF-8; convert the file first (iconv -f latin1 -t utf-8 OLD "
            "> NEW)");
}

}  // namespace
}  // namespace moebius::data
