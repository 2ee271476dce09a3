#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>
#include <random>

#include "data/corpus_builder.h"
#include "data/pipeline/compressed_text.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

std::string words(std::mt19937& random, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += i == 0 ? "" : random() % 9 == 0 ? ".\n" : " ";
    for (size_t k = 0, length = 1 + random() % 9; k < length; ++k)
      text += static_cast<char>('a' + random() % 26);
  }
  return text;
}

std::string json_line(const std::string& text, int id) {
  return nlohmann::ordered_json{{"id", id}, {"text", text}, {"more", {1, "x", nullptr}}}.dump() + "\n";
}

// Several megabytes in files of all kinds, with duplicates within and between them.
class BuildPipeline : public testing::Test {
 protected:
  BuildPipeline() {
    std::mt19937 random(7);
    std::vector<std::string> texts;
    for (int i = 0; i < 900; ++i) texts.push_back(words(random, static_cast<int>(1 + random() % 900)));
    std::string first, second, third;
    for (int i = 0; i < 900; ++i) {
      first += json_line(texts[i], i);
      if (i % 3 == 0) second += json_line(texts[899 - i] + " and a few more words here", i);
      if (i % 7 == 0) third += texts[i].substr(0, texts[i].find('\n')) + "\n";
    }
    plan.files = {
        write_text(folder / "first.jsonl.gz", gzip_of(first) + gzip_of("\n" + first.substr(0, 99999))),
        write_text(folder / "second.ndjson.zst", zstd_of(second)), write_text(folder / "third.txt", third),
        write_text(folder / "fourth.md.zst", zstd_of(texts[5])),
        write_text(folder / "fifth.jsonl", second + first)};
    // The second member of the gzip file ends inside a line.
    plan.tokenizer = load_tokenizer_json(source_file("tests/data/tokenizers/qwen2.json"));
    plan.duplicates = Duplicates::near;
    plan.filter = {.min_chars = 12, .max_chars = 5000, .min_printable = 0.9};
    plan.skips_errors = true;
    plan.keeps_partial = true;
    plan.commit_bytes = plan.in_flight_bytes = 1;  // one batch at a time
    plan.is_interrupted = [this] { return interrupted.load(); };
    plan.prefix = folder / "corpus";
  }

  // All three files; the sidecar holds the counters.
  std::string result() const {
    return read_file(bin_path(plan.prefix)) + read_file(idx_path(plan.prefix)) +
           read_file(info_path(plan.prefix));
  }
  void clear() {
    for (const auto& path : {bin_path(plan.prefix), idx_path(plan.prefix), info_path(plan.prefix)})
      fs::remove(path);
  }
  bool is_clean() const { return !fs::exists(work_folder(plan.prefix)); }

  TemporaryFolder folder;
  CorpusBuild plan;
  std::atomic<bool> interrupted{false};
};

TEST_F(BuildPipeline, the_result_does_not_depend_on_the_number_of_threads) {
  std::string expected;
  for (const int threads : {1, 2, 5}) {
    plan.num_threads = threads;
    const BuildReport report = build_corpus(plan);
    EXPECT_EQ(report.counters.files, 5);
    EXPECT_EQ(report.counters.bad_records, 1);
    EXPECT_GT(report.counters.near_duplicates, 100);
    EXPECT_GT(report.counters.exact_duplicates, 500);
    EXPECT_GT(report.counters.too_short, 5);
    EXPECT_GT(report.counters.too_long, 5);
    EXPECT_GT(report.counters.documents, 300);
    EXPECT_EQ(report.counters.tokens, Corpus::open(plan.prefix)->num_tokens());
    EXPECT_TRUE(is_clean());
    if (expected.empty()) expected = result();
    EXPECT_TRUE(result() == expected) << threads << " threads";
    EXPECT_TRUE(corpus_is_current(plan));
    clear();
  }
}

TEST_F(BuildPipeline, documents_stand_in_the_order_of_the_files_with_their_text) {
  plan.tokenizer = make_bytes_tokenizer();
  plan.files = {write_text(folder / "a.jsonl",
                           json_line("one\u00e9\t\"", 1) + "\r\n \n{\"text\": \"t\\u0041\\ud83d\\ude00\"}\n"),
                write_text(folder / "b.txt.gz", gzip_of("whole\ntext")),
                write_text(folder / "c.json", json_line("two", 1))};
  plan.duplicates = Duplicates::exact;
  plan.filter = {};
  build_corpus(plan);
  const auto corpus = Corpus::open(plan.prefix);
  std::vector<std::string> texts;
  for (int64_t i = 0; i < corpus->num_documents(); ++i) {
    std::vector<int32_t> ids;
    corpus->read(corpus->document(i), 256, ids);
    texts.push_back(plan.tokenizer->decode(ids));
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"one\u00e9\t\"", "tA\U0001F600", "whole\ntext", "two"}));
  EXPECT_NO_THROW(corpus->verify());
}

TEST_F(BuildPipeline, a_build_that_is_interrupted_again_and_again_gives_the_same) {
  build_corpus(plan);
  const std::string expected = result();
  clear();
  int builds = 0;
  for (bool done = false; !done; ++builds) {
    ASSERT_LT(builds, 100);
    interrupted = false;
    plan.progress = [&](int64_t, int64_t) { interrupted = true; };
    plan.num_threads = 1 + builds % 2;
    try {
      const BuildReport report = build_corpus(plan);
      EXPECT_GT(report.resumed_bytes, 0);
      done = true;
    } catch (const BuildInterrupted&) {
      EXPECT_FALSE(fs::exists(idx_path(plan.prefix)));
    }
  }
  EXPECT_GT(builds, 1);
  EXPECT_TRUE(result() == expected);
  EXPECT_TRUE(is_clean());
}

TEST_F(BuildPipeline, a_build_that_was_killed_goes_on_before_what_it_had_half_written) {
  build_corpus(plan);
  const std::string expected = result();
  clear();
  struct Killed {};
  for (int calls_left = 1; calls_left < 6; ++calls_left) {
    int calls = 0;
    plan.progress = [&](int64_t, int64_t) {
      if (++calls > calls_left) throw Killed();
    };
    try {
      build_corpus(plan);
    } catch (const Killed&) {
    }
    if (is_clean()) break;
    for (const char* name : {"tokens", "borders", "fingerprints"})
      std::ofstream(work_folder(plan.prefix) / name, std::ios::app | std::ios::binary) << "torn";
  }
  plan.progress = nullptr;
  const BuildReport report = build_corpus(plan);
  EXPECT_GT(report.resumed_bytes, 0);
  EXPECT_TRUE(result() == expected);
}

TEST_F(BuildPipeline, a_full_disk_is_named_and_the_build_goes_on_when_there_is_room) {
  build_corpus(plan);
  const std::string expected = result();
  clear();
  for (const int64_t bytes : {0, 9000, 300000, 900000}) {
    const ScopedDiskLimit full(bytes);
    EXPECT_NE(user_error([&] { build_corpus(plan); }).find("the disk is full"), std::string::npos);
    EXPECT_FALSE(fs::exists(info_path(plan.prefix)));
  }
  build_corpus(plan);
  EXPECT_TRUE(result() == expected);
}

TEST_F(BuildPipeline, other_input_or_settings_begin_anew) {
  const auto interrupt = [&] {
    interrupted = false;
    plan.progress = [&](int64_t, int64_t) { interrupted = true; };
    EXPECT_THROW(build_corpus(plan), BuildInterrupted);
    plan.progress = nullptr;
    interrupted = false;
  };
  plan.skips_errors = false;
  plan.files.erase(plan.files.begin());
  interrupt();
  plan.filter.min_chars = 20;
  EXPECT_EQ(build_corpus(plan).resumed_bytes, 0);
  clear();
  interrupt();
  plan.skips_errors = true;  // nothing was skipped so far: the same result
  EXPECT_GT(build_corpus(plan).resumed_bytes, 0);
  EXPECT_TRUE(corpus_is_current(plan));
  plan.filter.min_chars = 12;
  EXPECT_FALSE(corpus_is_current(plan));
}

TEST_F(BuildPipeline, an_opencl_device_gives_the_same) {
  if (const std::string missing = why_no_opencl(); !missing.empty()) GTEST_SKIP() << missing;
  build_corpus(plan);
  const std::string expected = result();
  clear();
  plan.decode_device = "opencl";
  plan.num_threads = 2;
  build_corpus(plan);
  EXPECT_TRUE(result() == expected);
}

class BadInput : public testing::Test {
 protected:
  BadInput() {
    plan.tokenizer = make_bytes_tokenizer();
    plan.prefix = folder / "out";
  }
  std::string error(const std::string& name, const std::string& contents) {
    plan.files = {write_text(folder / name, contents)};
    const std::string file = plan.files[0].string(), message = user_error([&] { build_corpus(plan); });
    return message.starts_with(file) ? "FILE" + message.substr(file.size()) : message;
  }
  BuildReport skip() {
    plan.skips_errors = true;
    return build_corpus(plan);
  }

  TemporaryFolder folder;
  CorpusBuild plan;
};

TEST_F(BadInput, json_lines_are_quoted_with_file_and_line) {
  const std::string way_out = "; mend the line, or leave such lines out (moebius data build --on-error skip)";
  const auto first = [&](const std::string& line) {
    return error("x.jsonl", "{\"text\": \"good\"}\n\n" + line);
  };
  EXPECT_EQ(first("{\"a\": 1}"), "FILE:3: has no field 'text': '{\"a\": 1}'" + way_out);
  EXPECT_EQ(first("{\"text\": 1}"),
            "FILE:3: field 'text' is a number, expected text: '{\"text\": 1}'" + way_out);
  EXPECT_EQ(first("[\"text\"]"), "FILE:3: is a list, expected an object: '[\"text\"]'" + way_out);
  EXPECT_EQ(first("{\"text\": \"x").substr(0, 24), "FILE:3: not valid JSON (");
  EXPECT_EQ(first("{\"text\": \"\xE9\"}").substr(0, 24), "FILE:3: not valid JSON (");
  EXPECT_EQ(first("{\"text\": \"\\ud800\"}").substr(0, 24), "FILE:3: not valid JSON (");
  plan.text_field = "/a/b";
  EXPECT_EQ(error("x.jsonl", "{\"a\": {\"b\": \"yes\"}}\n{\"a\": 5}\n"),
            "FILE:2: has no field '/a/b': '{\"a\": 5}'" + way_out);
  const BuildReport report = skip();
  EXPECT_EQ(report.counters.records, 2);
  EXPECT_EQ(report.counters.bad_records, 1);
  EXPECT_EQ(report.problems,
            std::vector<std::string>{plan.files[0].string() + ":2: has no field '/a/b': '{\"a\": 5}'"});
  EXPECT_TRUE(corpus_is_current(plan));
  plan.skips_errors = false;
  EXPECT_FALSE(corpus_is_current(plan)) << "the error would be met again";
}

TEST_F(BadInput, lines_of_text_are_quoted_with_file_and_line) {
  plan.split = DocumentSplit::line;
  EXPECT_EQ(error("x.txt", "good\ncaf\xE9!\nalso good\n"),
            "FILE:2: byte 0xE9 at offset 3 is not UTF-8; convert the file first (iconv -f latin1 -t utf-8 "
            "OLD > NEW)");
  EXPECT_EQ(skip().counters.documents, 2);
  EXPECT_EQ(error("y.txt.gz", gzip_of("")),
            "no document is left of 0: 0 could not be read, 0 were empty, 0 were "
            "dropped by the filter; give other text or a wider filter");
}

TEST_F(BadInput, damaged_compression_is_read_up_to_the_damage) {
  std::mt19937 random(3);
  std::string text;
  for (int i = 0; i < 4000; ++i) text += json_line(words(random, 60), i);
  for (const bool is_gzip : {true, false}) {
    const std::string good = is_gzip ? gzip_of(text) : zstd_of(text);
    const std::string kind = is_gzip ? "gzip" : "zstd", name = is_gzip ? "x.jsonl.gz" : "x.jsonl.zst";
    plan.skips_errors = false;
    const std::string cut = error(name, good.substr(0, good.size() / 2));
    EXPECT_EQ(cut.substr(0, 23), std::string("FILE: damaged ") + kind + " data");
    EXPECT_NE(cut.find("(the file is cut off) after line "), std::string::npos) << cut;
    const BuildReport report = skip();
    EXPECT_EQ(report.counters.bad_files, 1);
    EXPECT_GT(report.counters.documents, 500);
    EXPECT_LT(report.counters.documents, 3000);
    plan.skips_errors = false;
    std::string damaged = good;
    for (size_t i = 0; i < 64; ++i)
      damaged[good.size() / 2 + i] = static_cast<char>(damaged[good.size() / 2 + i] ^ 0x5A);
    error(name, damaged);  // where damage shows first, in a line or in the checksum, is the format's affair
    const BuildCounters counters = skip().counters;
    EXPECT_GT(counters.bad_files + counters.bad_records, 0);
    plan.skips_errors = false;
    EXPECT_EQ(error(name, "not compressed").substr(0, 23), std::string("FILE: damaged ") + kind + " data");
  }
}

TEST_F(BadInput, empty_and_very_long_documents) {
  // Of the worst kind for tokenizers: nothing to split at.
  plan.tokenizer = load_tokenizer_json(source_file("tests/data/tokenizers/qwen2.json"));
  const std::string large(3 << 20, 'a');
  EXPECT_EQ(error("x.jsonl.zst", zstd_of(json_line("", 0) + json_line(large, 1) + json_line("end", 2))),
            "no error");
  const auto corpus = Corpus::open(plan.prefix);
  ASSERT_EQ(corpus->num_documents(), 2);
  std::vector<int32_t> ids;
  corpus->read(corpus->document(0), 1 << 20, ids);
  EXPECT_TRUE(plan.tokenizer->decode(ids) == large);
  EXPECT_EQ(
      error("x.jsonl", json_line("", 0)),
      "no document is left of 1: 0 could not be read, 1 were empty, 0 were dropped by the filter; give other "
      "text or a wider filter");
  plan.filter = {.min_chars = 5, .max_chars = 4};
  EXPECT_EQ(error("x.jsonl", json_line("", 0)),
            "no document has at least 5 and at most 4 characters; raise the upper limit or lower the other");
}

TEST(DocumentFilter, counts_characters_and_those_that_do_not_print) {
  const CharacterCounts counts = count_characters("a\t\n\u00e9\U0001F600\x01\x7F\u0085\uFFFD\uE000\uFDD0");
  EXPECT_EQ(counts.characters, 11);
  EXPECT_EQ(counts.unprintable, 6);
}

}  // namespace
}  // namespace moebius::data
