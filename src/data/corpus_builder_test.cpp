#include "data/corpus_builder.h"

#include <sentencepiece_trainer.h>

#include <chrono>

#include "data/test_files.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

std::vector<int32_t> all_tokens(const fs::path& prefix) {
  const auto corpus = Corpus::open(prefix);
  std::vector<int32_t> ids;
  corpus->read({0, corpus->num_tokens()}, 1 << 30, ids);
  return ids;
}

CorpusBuild build_of(const TemporaryFolder& folder, const std::string& text) {
  CorpusBuild build;
  build.files = {write_text(folder / "text.txt", text)};
  build.tokenizer = make_bytes_tokenizer();
  build.prefix = folder / "out";
  return build;
}

fs::path small_model(const TemporaryFolder& folder) {
  TokenizerTraining training;
  const std::string text = read_file(source_file("examples/data/tinyshakespeare.txt"));
  training.files = {write_text(folder / "train.txt", text.substr(0, 40000))};
  training.vocab = 500;
  training.out = folder / "small.model";
  train_sentencepiece(training);
  return training.out;
}

// As the models of Llama and Mistral are: a space is put before the text, white space is kept.
fs::path model_with_dummy_prefix(const TemporaryFolder& folder) {
  const std::string text = read_file(source_file("examples/data/tinyshakespeare.txt")).substr(0, 40000);
  const auto input = write_text(folder / "train.txt", text);
  const auto status =
      sentencepiece::SentencePieceTrainer::Train({{"input", input.string()},
                                                  {"model_prefix", (folder / "prefixed").string()},
                                                  {"model_type", "bpe"},
                                                  {"vocab_size", "500"},
                                                  {"byte_fallback", "true"},
                                                  {"normalization_rule_name", "identity"},
                                                  {"remove_extra_whitespaces", "false"},
                                                  {"minloglevel", "2"}});
  EXPECT_TRUE(status.ok()) << status.ToString();
  return folder / "prefixed.model";
}

TEST(CorpusBuilder, long_text_in_parallel_pieces_gives_the_tokens_of_the_whole) {
  const TemporaryFolder folder;
  std::string text = read_file(source_file("examples/data/tinyshakespeare.txt")).substr(0, 900000);
  for (const auto& tokenizer : {make_bytes_tokenizer(), load_sentencepiece(small_model(folder)),
                                load_sentencepiece(model_with_dummy_prefix(folder))}) {
    ASSERT_TRUE(tokenizer->separable_at_newlines());
    CorpusBuild build = build_of(folder, text);
    build.tokenizer = tokenizer;
    build_corpus(build);
    std::vector<int32_t> expected = tokenizer->encode(text);
    if (tokenizer->document_end_id() >= 0) expected.push_back(tokenizer->document_end_id());
    EXPECT_TRUE(all_tokens(build.prefix) == expected);
    EXPECT_EQ(tokenizer->decode(expected), text);
    EXPECT_EQ(Corpus::open(build.prefix)->num_documents(), 1);
  }
}

TEST(CorpusBuilder, a_line_can_be_a_document) {
  const TemporaryFolder folder;
  CorpusBuild build = build_of(folder, "one\n\ntwo words\nthree");
  build.split = DocumentSplit::line;
  build_corpus(build);
  const auto corpus = Corpus::open(build.prefix);
  ASSERT_EQ(corpus->num_documents(), 3);
  EXPECT_EQ(corpus->document(1), (TokenRange{3, 12}));
  EXPECT_EQ(corpus->info()->split, "line");
}

TEST(CorpusBuilder, a_document_ends_with_the_end_token_of_the_vocabulary) {
  const TemporaryFolder folder;
  CorpusBuild build = build_of(folder, "First\nSecond\n");
  build.tokenizer = load_sentencepiece(small_model(folder));
  build.split = DocumentSplit::line;
  build_corpus(build);
  const auto corpus = Corpus::open(build.prefix);
  ASSERT_EQ(corpus->num_documents(), 2);
  for (int i = 0; i < 2; ++i) {
    std::vector<int32_t> ids;
    corpus->read(corpus->document(i), 500, ids);
    EXPECT_EQ(ids.back(), build.tokenizer->eos_id());
    EXPECT_EQ(build.tokenizer->decode(ids), i == 0 ? "First" : "Second");
  }
}

TEST(CorpusBuilder, progress_ends_at_the_size_of_the_text) {
  const TemporaryFolder folder;
  CorpusBuild build = build_of(folder, std::string(3 << 20, 'x') + "\n");
  std::vector<int64_t> done;
  build.progress = [&](int64_t bytes, int64_t total) {
    EXPECT_EQ(total, (3 << 20) + 1);
    done.push_back(bytes);
  };
  build_corpus(build);
  ASSERT_FALSE(done.empty());
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), (3 << 20) + 1);
}

TEST(CorpusBuilder, is_current_until_text_tokenizer_split_or_files_change) {
  const TemporaryFolder folder;
  CorpusBuild build = build_of(folder, "some text");
  EXPECT_FALSE(corpus_is_current(build)) << "nothing is there";
  build_corpus(build);
  EXPECT_TRUE(corpus_is_current(build));

  const auto later = fs::last_write_time(build.files[0]) + std::chrono::seconds(5);
  fs::last_write_time(build.files[0], later);
  EXPECT_TRUE(corpus_is_current(build)) << "another time, the same content";
  write_text(build.files[0], "same size");
  fs::last_write_time(build.files[0], later + std::chrono::seconds(5));
  EXPECT_FALSE(corpus_is_current(build)) << "other content of the same size";
  build_corpus(build);
  EXPECT_TRUE(corpus_is_current(build));

  CorpusBuild other = build;
  other.split = DocumentSplit::line;
  EXPECT_FALSE(corpus_is_current(other));
  other = build;
  other.tokenizer = load_sentencepiece(source_file("tests/data/sentencepiece-test_model.model"));
  EXPECT_FALSE(corpus_is_current(other));
  other = build;
  other.files.push_back(write_text(folder / "more.txt", "more"));
  EXPECT_FALSE(corpus_is_current(other));

  write_text(bin_path(build.prefix), "");
  EXPECT_FALSE(corpus_is_current(build)) << "a damaged corpus is built again";
  build_corpus(build);
  EXPECT_TRUE(corpus_is_current(build));
}

TEST(CorpusBuilder, bad_text_is_a_user_error_and_leaves_the_corpus_that_was_there) {
  const TemporaryFolder folder;
  CorpusBuild build = build_of(folder, "good text");
  build_corpus(build);
  const std::string before = read_file(bin_path(build.prefix));
  const auto error = [&](const std::string& text) {
    write_text(build.files[0], text);
    return user_error([&] { build_corpus(build); });
  };
  const std::string file = build.files[0].string();
  EXPECT_EQ(error(""), file + ": the file is empty; give a text file with some text in it");
  EXPECT_EQ(error("caf\xE9!"),
            file +
                ": byte 0xE9 at offset 3 is not UTF-8; convert the file first (iconv -f latin1 "
                "-t utf-8 OLD > NEW)");
  EXPECT_EQ(
      error(std::string("\x7F"
                        "ELF\0",
                        5)),
      file +
          ": NUL byte at offset 4, so this is binary data or UTF-16, not UTF-8 text; give plain text (for "
          "UTF-16: iconv -f utf-16 -t utf-8)");
  fs::remove(build.files[0]);
  EXPECT_EQ(user_error([&] { build_corpus(build); }), file + ": there is no such file; check the path");
  build.files = {folder.path()};
  EXPECT_EQ(user_error([&] { build_corpus(build); }),
            folder.path().string() + ": this is not a file; name the text files in it one by one");
  build.files.clear();
  EXPECT_EQ(user_error([&] { build_corpus(build); }),
            "no text file was given to build a corpus from; name at least one");
  EXPECT_EQ(read_file(bin_path(build.prefix)), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 3) << "no temporary file is left";
}

TEST(CorpusBuilder, a_full_disk_leaves_the_corpus_that_was_there) {
  const TemporaryFolder folder;
  CorpusBuild build = build_of(folder, "good text");
  build_corpus(build);
  write_text(build.files[0], std::string(100000, 'x'));
  {
    const ScopedDiskLimit full(5000);
    EXPECT_NE(user_error([&] { build_corpus(build); }).find(work_folder(build.prefix).string()),
              std::string::npos);
  }
  EXPECT_EQ(Corpus::open(build.prefix)->num_tokens(), 9);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 4) << "no temporary file is left";
}

}  // namespace
}  // namespace moebius::data
