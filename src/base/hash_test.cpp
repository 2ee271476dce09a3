#include "base/hash.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/test_folder.h"

namespace moebius {
namespace {

// From xxHash's own test vectors: the empty input with seed 0.
TEST(Hash, known_answers_of_xxh3) {
  EXPECT_EQ(hash_hex(hash64("")), "2d06800538d394c2");
  EXPECT_EQ(hash_hex(0xABC), "0000000000000abc");
}

TEST(Hash, pieces_and_whole_agree) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 7);
  Hasher hasher;
  hasher.update("");
  for (size_t i = 0, n = 1; i < text.size(); i += n, n = n * 2 + 1) hasher.update(text.substr(i, n));
  EXPECT_EQ(hasher.digest(), hash64(text));
  hasher.reset();
  EXPECT_EQ(hasher.hex(), hash_hex(hash64("")));

  TestFolder folder;
  write_file_atomic(folder / "a", text);
  EXPECT_EQ(hash_file(folder / "a"), hash64(text));
  text[4000] ^= 1;
  EXPECT_NE(hash_file(folder / "a"), hash64(text));
}

}  // namespace
}  // namespace moebius
