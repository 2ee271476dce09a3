#include "data/bpe/regex.h"

#include "data/bpe/normal_form.h"
#include "data/bpe/unicode.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

// All matches in `text`, joined by '|'.
std::string matches(const std::string& pattern, const std::string& text) {
  const Regex regex(pattern, "test");
  std::string out;
  for (const auto& [begin, end] : RegexSearch(regex, text).find_all())
    out += (out.empty() ? "" : "|") + text.substr(begin, end - begin);
  return out;
}

TEST(Regex, characters_classes_and_repetition) {
  EXPECT_EQ(matches("ab", "abxab"), "ab|ab");
  EXPECT_EQ(matches("[a-c]+", "abcdcba"), "abc|cba");
  EXPECT_EQ(matches("[^a-c]+", "abcdcba"), "d");
  EXPECT_EQ(matches("[\\-\\]x]+", "a-]xb"), "-]x");
  EXPECT_EQ(matches("[]a]+", "]a"), "]a");
  EXPECT_EQ(matches("[a[0-9]]+", "a1b2"), "a1|2");
  EXPECT_EQ(matches("a{2}", "aaaaa"), "aa|aa");
  EXPECT_EQ(matches("a{2,3}", "aaaaa"), "aaa|aa");
  EXPECT_EQ(matches("a{,2}b", "aaab"), "aab");
  EXPECT_EQ(matches("a{x}", "a{x}"), "a{x}");
  EXPECT_EQ(matches("a+?b", "aab"), "aab");
  EXPECT_EQ(matches("a??b", "ab"), "ab");
  EXPECT_EQ(matches("a.c", "abc a\nc"), "abc");
  EXPECT_EQ(matches("\\x41\\u00e9\\x{1F642}", "Aé🙂"), "Aé🙂");
  EXPECT_EQ(matches("(?:ab|a)b?c?", "abbc ac"), "abbc|ac");
  EXPECT_EQ(matches("(ab){1,2}c", "ababc abababc"), "ababc|ababc");
}

TEST(Regex, categories_and_white_space) {
  EXPECT_EQ(matches("\\p{Lu}\\p{Ll}*", "Aéa Ñandú x"), "Aéa|Ñandú");
  EXPECT_EQ(matches("\\P{L}+", "a1-b"), "1-");
  EXPECT_EQ(matches("\\p{^L}+", "a1-b"), "1-");
  EXPECT_EQ(matches("[^\\s\\p{L}\\p{N}]+", "a €! 1"), "€!");
  EXPECT_EQ(matches("\\S+", "a\u00a0b\u2003c\u200bd"), "a|b|c\u200bd");
  EXPECT_EQ(matches("[\\S]+", "a b"), "a|b");
  EXPECT_EQ(matches("[^\\S\\n]+", "a \n b"), " | ");
  EXPECT_EQ(matches("\\w+", "a_1-é²"), "a_1|é²");
  EXPECT_EQ(matches("\\d+", "12٣½"), "12٣");
}

TEST(Regex, alternation_takes_the_first_branch_and_backtracks) {
  EXPECT_EQ(matches("a|ab", "ab"), "a");
  EXPECT_EQ(matches("\\s+(?!\\S)|\\s+", "a   b  "), "  | |  ");
  EXPECT_EQ(matches("\\s*[\\r\\n]+|\\s+", " \n \n  x"), " \n \n|  ");
  EXPECT_EQ(matches("x*+x|y", "xxxy"), "y");
  EXPECT_EQ(matches("(?>a|ab)c", "abc ac"), "ac");
  EXPECT_EQ(matches("(?<=a)b", "abcb"), "b");
  EXPECT_EQ(matches("(?<!a)b", "abcb"), "b");
  EXPECT_EQ(matches("^a|a$", "aa\naa"), "a|a|a|a");
  EXPECT_EQ(matches("\\Aa|a\\z", "aa\naa"), "a|a");
}

TEST(Regex, ignoring_case_knows_the_long_s_and_the_kelvin_sign) {
  EXPECT_EQ(matches("(?i:'s|k)", "'S'ſ'skK\u212a's"), "'S|'ſ|'s|k|K|\u212a|'s");
  EXPECT_EQ(matches("(?i)ab(?-i:c)", "ABc aBC"), "ABc");
  EXPECT_EQ(matches("(?:(?i)a|b)c", "Ac Bc c AC"), "Ac|Bc");
}

TEST(Regex, empty_matches_do_not_repeat_the_end_of_another) {
  const Regex regex("a*", "test");
  using Found = std::vector<std::pair<size_t, size_t>>;
  EXPECT_EQ(RegexSearch(regex, "baac").find_all(), (Found{{0, 0}, {1, 3}, {4, 4}}));
}

TEST(Regex, runs_that_fail_are_not_tried_again) {
  // Quadratic for a matcher that begins anew at each space.
  const Regex regex("\\s+$", "test");
  const std::string text = std::string(1'000'000, ' ') + "x";
  EXPECT_TRUE(RegexSearch(regex, text).find_all().empty());
}

TEST(Regex, user_errors_name_the_construct) {
  const auto message = [](const std::string& pattern) {
    return user_error([&] { Regex(pattern, "f.json: pattern"); });
  };
  const auto refused = [](const std::string& pattern, const std::string& reason) {
    return "f.json: pattern: the regular expression '" + pattern + "' cannot be used: " + reason;
  };
  EXPECT_EQ(message("(a"), refused("(a", "'(' without ')' (at byte 2)"));
  EXPECT_EQ(message("a)"), refused("a)", "')' without '(' (at byte 1)"));
  EXPECT_EQ(message("[a"), refused("[a", "'[' without ']' (at byte 2)"));
  EXPECT_EQ(message("*a"), refused("*a", "'*' has nothing to repeat (at byte 0)"));
  EXPECT_EQ(message("\\1"), refused("\\1", "back-references are not supported (at byte 2)"));
  EXPECT_EQ(message("\\b"), refused("\\b", "'\\b' is not supported (at byte 2)"));
  EXPECT_EQ(message("(?<n>a)"), refused("(?<n>a)", "the group '(?<n' is not supported (at byte 1)"));
  EXPECT_EQ(message("[a&&b]"), refused("[a&&b]", "&& in a class is not supported (at byte 4)"));
  EXPECT_EQ(message("[b-a]"),
            refused("[b-a]", "the range 'b-a' has its ends in the wrong order (at byte 4)"));
  EXPECT_EQ(message("(ab)*"),
            "f.json: pattern: the regular expression repeats a group without an upper bound, which is not "
            "supported; only single characters and classes can take * and +");
  EXPECT_EQ(message("(a{999}b){999}{999}"),
            "f.json: pattern: the regular expression is too large once its repetitions are written out");
}

TEST(Unicode, categories_of_characters) {
  EXPECT_EQ(category_of('A'), Category::Lu);
  EXPECT_EQ(category_of(0x01C5), Category::Lt);
  EXPECT_EQ(category_of(0x4E00), Category::Lo);
  EXPECT_EQ(category_of(0x0301), Category::Mn);
  EXPECT_EQ(category_of(0x1F642), Category::So);
  EXPECT_EQ(category_of(0x10FFFF), Category::Cn);
  EXPECT_TRUE(is_white_space(0x3000));
  EXPECT_FALSE(is_white_space(0x200B));
}

TEST(NormalFormC, composes_orders_and_leaves_alone) {
  EXPECT_EQ(normal_form_c("a\u0301"), "á");
  EXPECT_EQ(normal_form_c("q\u0307\u0323"), "q\u0323\u0307") << "marks are ordered by class";
  EXPECT_EQ(normal_form_c("e\u0301\u0323"), "ẹ\u0301");
  EXPECT_EQ(normal_form_c("\u212b\u2126"), "ÅΩ");
  EXPECT_EQ(normal_form_c("\u1100\u1161\u11a8"), "각");
  EXPECT_EQ(normal_form_c("\uac00\u11a8"), "각");
  EXPECT_EQ(normal_form_c("\u0958"), "\u0915\u093c") << "excluded from composition";
  const std::string plain = "Größe 中文 한국 🙂";
  EXPECT_EQ(normal_form_c_prefix(plain), plain.size());
  EXPECT_EQ(normal_form_c_prefix("aba\u0301"), 2u);
}

}  // namespace
}  // namespace moebius::data
