#include "data/pipeline/near_duplicates.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

namespace moebius::data {
namespace {

// A text of `count` words, of which those in [begin, end) are drawn with another seed.
std::string text_with(int count, int begin, int end, unsigned seed) {
  std::mt19937 common(seed), own(seed + 1000);
  std::string text;
  for (int i = 0; i < count; ++i) {
    const unsigned shared = common(), other = own();
    text += "w" + std::to_string(i >= begin && i < end ? other : shared) + " ";
  }
  return text;
}

TEST(NearDuplicates, the_share_is_estimated) {
  double worst = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    // 300 words have 296 runs of five; changing 20 in a row changes 24.
    const Signature a = signature_of(text_with(300, 0, 0, seed)),
                    b = signature_of(text_with(300, 100, 120, seed));
    const double exact = (296.0 - 24) / (296 + 24);
    worst = std::max(worst, std::abs(similarity(a, b) - exact));
  }
  EXPECT_LT(worst, 4 * 0.035);
  EXPECT_LT(similarity(signature_of(text_with(300, 0, 0, 1)), signature_of(text_with(300, 0, 0, 2))), 0.05);
  EXPECT_EQ(similarity(signature_of("Short one."), signature_of("short, ONE")), 1);
  EXPECT_LT(similarity(signature_of("short one"), signature_of("another one")), 0.2);
  EXPECT_EQ(similarity(signature_of("..."), signature_of("...")), 1);
  EXPECT_LT(similarity(signature_of("..."), signature_of("?!")), 0.2);
}

TEST(NearDuplicates, nearly_equal_documents_are_found_and_others_are_not) {
  NearDuplicates kept(0.8);
  int found = 0, wrongly = 0;
  for (unsigned seed = 0; seed < 200; ++seed) kept.insert(signature_of(text_with(300, 0, 0, seed)));
  for (unsigned seed = 0; seed < 200; ++seed) {
    found += kept.contains_like(signature_of(text_with(300, 100, 106, seed)));    // 0.93
    wrongly += kept.contains_like(signature_of(text_with(300, 100, 170, seed)));  // 0.6
  }
  EXPECT_GE(found, 199);
  EXPECT_EQ(wrongly, 0);
}

TEST(NearDuplicates, a_table_keeps_keys_and_their_order) {
  KeyTable table;
  std::multimap<uint64_t, uint32_t> expected;
  std::mt19937 random(5);
  for (uint32_t i = 0; i < 20000; ++i) {
    const uint64_t key = random() % 9000;
    table.insert(key, i);
    expected.emplace(key, i);
  }
  for (uint64_t key = 0; key < 9100; ++key) {
    auto [next, end] = expected.equal_range(key);
    table.any(key, [&, next = next, end = end](uint32_t number) mutable {
      EXPECT_TRUE(next != end && next->second == number) << key;
      ++next;
      return false;
    });
    EXPECT_EQ(table.any(key, [](uint32_t) { return true; }), expected.contains(key));
  }
}

}  // namespace
}  // namespace moebius::data
