// Random damage to compressed JSON lines: the readers must hand over whole lines of what could be read, or
// say what is wrong. Seeds are fixed; under the asan preset this also shows that nothing outside a buffer is
// read.
#include <random>

#include "data/pipeline/compressed_text.h"
#include "data/pipeline/parse.h"
#include "data/test_files.h"
#include "data/text.h"

namespace moebius::data {
namespace {

std::string lines() {
  std::string text;
  for (int i = 0; i < 40; ++i)
    text += "{\"text\": \"line " + std::to_string(i * 977) + " \\u00e9\\n\", \"n\": [1, 2.5e3, {}]}\n";
  return text;
}

std::string mutate(std::string bytes, std::mt19937& random) {
  static const std::vector<std::string> kParts = {
      "{",        "}",     "\"",      "\\", "\\ud800", "\n", "\r\n", "null", "\xFF", std::string(1, '\0'),
      "[[[[[[[[", "1e999", "\"text\""};
  const size_t edits = 1 + random() % 3;
  for (size_t i = 0; i < edits && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size();
    switch (random() % 5) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
        break;
      case 1:
        bytes.erase(at, 1 + random() % 16);
        break;
      case 2:
        bytes.insert(at, kParts[random() % kParts.size()]);
        break;
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 64));
        break;
    }
  }
  return bytes;
}

TEST(InputFuzz, damaged_files_are_read_up_to_the_damage_or_refused) {
  const TemporaryFolder folder;
  std::mt19937 random(20261128);
  const std::string text = lines();
  BatchParser parser("text", {.min_chars = 2, .min_printable = 0.5}, Duplicates::near);
  int problems = 0, documents = 0;
  for (int i = 0; i < 2000; ++i) {
    const int kind = i % 4;
    // Kind 3: good compression of bad lines.
    const std::string bytes = kind == 0   ? mutate(text, random)
                              : kind == 1 ? mutate(gzip_of(text), random)
                              : kind == 2 ? mutate(zstd_of(text), random)
                                          : zstd_of(mutate(text, random));
    const char* names[] = {"x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.jsonl.zst"};
    const std::vector<std::filesystem::path> files = {write_text(folder / names[kind], bytes)};
    InputReader reader(files, DocumentSplit::file, "text");
    InputBatch batch;
    int64_t used = 0;
    bool ended = false;
    while (reader.next(batch)) {
      ASSERT_FALSE(ended);
      ended = batch.ends_file;
      ASSERT_LE(used, batch.position);
      used = batch.position;
      problems += !batch.problem.empty();
      const auto parsed = parser.parse(std::move(batch), files[0].string());
      ASSERT_EQ(parsed->num_records,
                static_cast<int64_t>(parsed->documents.size() + parsed->problems.size()));
      problems += static_cast<int>(parsed->problems.size());
      for (const ParsedDocument& document : parsed->documents) {
        ASSERT_EQ(first_invalid_utf8(document.text), document.text.size());
        documents += document.verdict == Verdict::kept;
      }
      for (const RecordProblem& problem : parsed->problems) ASSERT_LT(problem.message.size(), 500u);
    }
    ASSERT_TRUE(ended);
    ASSERT_EQ(used, static_cast<int64_t>(bytes.size()));
  }
  EXPECT_GT(problems, 1000);
  EXPECT_GT(documents, 20000);
}

}  // namespace
}  // namespace moebius::data
