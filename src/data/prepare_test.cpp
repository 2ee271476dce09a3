#include "data/prepare.h"

#include "base/concat.h"
#include "data/corpus_builder.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

class Prepare : public testing::Test {
 protected:
  Prepare() {
    first = write_text(folder / "first.txt", std::string(100, 'a')).string();
    second = write_text(folder / "second.txt", std::string(300, 'b')).string();
    config.files = {first, second};
    cache = folder / "cache";
  }
  Sources open() {
    return open_sources(config, cache,
                        [&](const std::string& file, int64_t, int64_t) { built.push_back(file); });
  }
  std::string error() {
    return user_error([&] { open(); });
  }

  TemporaryFolder folder;
  std::string first, second;
  fs::path cache;
  config::DataConfig config;
  std::vector<std::string> built;
};

TEST_F(Prepare, each_file_is_a_source_split_at_its_end_and_weighted_by_its_tokens) {
  const Sources sources = open();
  ASSERT_EQ(sources.train.size(), 2u);
  EXPECT_EQ(sources.train[0].range, (TokenRange{0, 90}));
  EXPECT_EQ(sources.train[1].range, (TokenRange{0, 270}));
  EXPECT_EQ(sources.train[1].weight / sources.train[0].weight, 3);
  EXPECT_EQ(sources.train[0].name, "data.files[0] (" + first + ")");
  ASSERT_EQ(sources.validation.size(), 2u);
  EXPECT_EQ(sources.validation[1].range, (TokenRange{270, 300}));
  EXPECT_EQ(sources.train_tokens, 360);
  EXPECT_EQ(sources.validation_tokens, 40);
}

TEST_F(Prepare, corpora_are_built_once_and_again_when_the_text_changes) {
  open();
  EXPECT_EQ(built, (std::vector<std::string>{first, second}));
  built.clear();
  open();
  EXPECT_TRUE(built.empty());
  write_text(second, "another text");
  const Sources sources = open();
  EXPECT_EQ(built, std::vector<std::string>{second});
  EXPECT_EQ(sources.train[1].corpus->num_tokens(), 12);
}

TEST_F(Prepare, files_of_the_same_name_do_not_share_a_corpus) {
  fs::create_directories(folder / "other");
  config.files = {first, write_text(folder / "other" / "first.txt", "b").string()};
  EXPECT_EQ(open().train[0].corpus->num_tokens(), 100);
  EXPECT_EQ(open().train[1].corpus->num_tokens(), 1);
}

TEST_F(Prepare, cache_dir_of_the_config_wins) {
  config.cache_dir = (folder / "mine").string();
  open();
  EXPECT_FALSE(fs::exists(cache));
  EXPECT_EQ(std::distance(fs::directory_iterator(config.cache_dir), {}), 6);
}

TEST_F(Prepare, a_validation_file_leaves_all_of_the_sources_for_training) {
  config.validation_file = write_text(folder / "valid.txt", "validation text").string();
  const Sources sources = open();
  EXPECT_EQ(sources.train_tokens, 400);
  ASSERT_EQ(sources.validation.size(), 1u);
  EXPECT_EQ(sources.validation[0].range, (TokenRange{0, 15}));
}

TEST_F(Prepare, a_fraction_of_zero_leaves_no_validation) {
  config.validation_fraction = 0;
  const Sources sources = open();
  EXPECT_TRUE(sources.validation.empty());
  EXPECT_EQ(sources.train_tokens, 400);
}

TEST_F(Prepare, a_built_corpus_is_a_source) {
  CorpusBuild build;
  build.files = {first, second};
  build.tokenizer = make_bytes_tokenizer();
  build.prefix = folder / "joined";
  build_corpus(build);
  config.files = {idx_path(build.prefix).string()};
  const Sources sources = open();
  EXPECT_EQ(sources.train[0].corpus->num_documents(), 2);
  EXPECT_EQ(sources.train_tokens, 360);
  EXPECT_FALSE(fs::exists(cache));
}

TEST_F(Prepare, a_corpus_of_another_tokenizer_is_a_user_error) {
  CorpusBuild build;
  build.files = {first};
  build.tokenizer = make_bytes_tokenizer();
  build.prefix = folder / "bytes";
  build_corpus(build);
  config.files = {idx_path(build.prefix).string()};
  config.tokenizer = source_file("tests/data/sentencepiece-test_model.model").string();
  EXPECT_EQ(error(),
            "corpus " + build.prefix.string() + ": tokenizer_fingerprint is bytes-1 (bytes), expected " +
                open_tokenizer(config.tokenizer)->fingerprint() +
                " (data.tokenizer, sentencepiece-test_model.model); give the tokenizer that the corpus was "
                "built with, or build it again (moebius data build)");
}

TEST_F(Prepare, user_errors_name_the_field_the_value_and_the_way_out) {
  config.weights = {1};
  EXPECT_EQ(error(),
            "data.weights has 1 values, but data.files names 2 files; give one weight per file, or none for "
            "shares by size");
  config.weights = {0, 0};
  EXPECT_EQ(error(), "data.weights are all 0; give at least one file a positive weight");
  config.weights.clear();
  config.files = {(folder / "no.txt").string()};
  EXPECT_EQ(error(), (folder / "no.txt").string() + ": there is no such file; check the path");
  config.files = {(folder / "no.idx").string()};
  EXPECT_EQ(error(), "corpus " + (folder / "no.idx").string() +
                         ": there is no such file; build the corpus first (moebius data build)");
  config.files = {write_text(folder / "empty.txt", "").string()};
  EXPECT_EQ(error(),
            (folder / "empty.txt").string() + ": the file is empty; give a text file with some text in it");
  config.files.clear();
  EXPECT_EQ(error(),
            "data.files is empty; name at least one text file or .idx corpus (or set data.synthetic = true "
            "for random tokens)");
}

TEST_F(Prepare, a_text_shorter_than_one_sequence_is_a_user_error) {
  config.files = {write_text(folder / "tiny.txt", "a").string()};
  const Sources sources = open();
  const auto make = [&] {
    make_training_batches(config, sources,
                          {.seed = 1, .sequence = 256, .batch = 1, .micro_batch = 1, .vocab_size = 256});
  };
  EXPECT_EQ(user_error(make), "data.files[0] (" + config.files[0] +
                                  ") has 0 training tokens, but train.sequence is 256 and one sequence needs "
                                  "257; lower train.sequence, "
                                  "give more text, or join short files to one corpus (moebius data build)");
}

TEST_F(Prepare, synthetic_data_opens_nothing) {
  config.synthetic = true;
  config.files = {"no such file"};
  const Sources sources = open();
  EXPECT_EQ(sources.tokenizer, nullptr);
  EXPECT_TRUE(sources.train.empty());
  const auto batches = make_training_batches(
      config, sources, {.seed = 1, .sequence = 8, .batch = 4, .micro_batch = 2, .vocab_size = 32000});
  Batch batch;
  batches->fill(0, 1, batch);
  EXPECT_EQ(batch.num_tokens(), 16);
}

TEST_F(Prepare, the_example_text_gives_byte_batches) {
  config.files = {source_file("examples/data/tinyshakespeare.txt").string()};
  const Sources sources = open();
  EXPECT_EQ(sources.train_tokens, 1003854);
  EXPECT_EQ(sources.validation_tokens, 111540);
  const auto batches = make_training_batches(
      config, sources, {.seed = 1, .sequence = 256, .batch = 8, .micro_batch = 8, .vocab_size = 256});
  Batch batch;
  batches->fill(1000, 0, batch);
  EXPECT_EQ(batch.num_targets, 2048);
  EXPECT_EQ(batch.max_seqlen, 256);
}

}  // namespace
}  // namespace moebius::data
