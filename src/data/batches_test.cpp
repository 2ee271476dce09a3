#include "data/batches.h"

#include <numeric>

#include "data/corpus_builder.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

template <class Vector>
std::vector<int64_t> plain(const Vector& values) {
  return {values.begin(), values.end()};
}

// Documents of byte tokens, one text each.
std::shared_ptr<const Corpus> corpus_of(const TemporaryFolder& folder,
                                        const std::vector<std::string>& documents) {
  CorpusWriter writer(folder / "texts", TokenType::uint16);
  for (const std::string& text : documents) {
    writer.add(make_bytes_tokenizer()->encode(text));
    writer.end_document();
  }
  writer.finish({});
  return Corpus::open(folder / "texts");
}

TEST(Batch, a_sequence_of_one_document_has_a_target_everywhere) {
  Batch batch;
  batch.clear();
  const int32_t text[] = {5, 6, 7, 8};
  batch.add_sequence(text, 3, {});
  batch.add_sequence(text, 3, {});
  EXPECT_EQ(plain(batch.tokens), (std::vector<int64_t>{5, 6, 7, 5, 6, 7}));
  EXPECT_EQ(plain(batch.targets), (std::vector<int64_t>{6, 7, 8, 6, 7, 8}));
  EXPECT_EQ(plain(batch.positions), (std::vector<int64_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 3, 6}));
  EXPECT_EQ(batch.num_targets, 6);
  EXPECT_EQ(batch.max_seqlen, 3);
  EXPECT_EQ(batch.num_sequences, 2);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(batch.tokens.data()) % 64, 0u);
}

TEST(Batch, no_target_crosses_a_document_border) {
  Batch batch;
  batch.clear();
  const int32_t text[] = {1, 2, 3, 4, 5, 6};
  const int64_t borders[] = {2, 3, 5};  // the last document begins with the token that is only a target
  batch.add_sequence(text, 5, borders);
  EXPECT_EQ(plain(batch.tokens), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(plain(batch.targets), (std::vector<int64_t>{2, -100, -100, 5, -100}));
  EXPECT_EQ(plain(batch.positions), (std::vector<int64_t>{0, 1, 0, 0, 1}));
  EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 2, 3, 5}));
  EXPECT_EQ(batch.num_targets, 2);
  EXPECT_EQ(batch.max_seqlen, 2);
}

TEST(TextBatches, micro_batches_of_a_step_are_the_step) {
  const TemporaryFolder folder;
  const auto corpus =
      corpus_of(folder, {"the first document", "a second one, somewhat longer", "third", "the last"});
  const SamplerSource source{corpus, {0, corpus->num_tokens()}, 1, "texts"};
  const auto batches = [&](int64_t micro_batch) {
    return TextBatches(Sampler({source}, 4, 10, 6), micro_batch, 256);
  };
  TextBatches by_six = batches(6), by_two = batches(2);
  Batch whole, part;
  for (int64_t step = 0; step < 10; ++step) {
    by_six.fill(step, 0, whole);
    EXPECT_EQ(whole.num_tokens(), 60);
    EXPECT_EQ(whole.cu_seqlens.back(), 60);
    std::vector<int64_t> tokens, targets;
    for (int64_t micro = 0; micro < 3; ++micro) {
      by_two.fill(step, micro, part);
      tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
      targets.insert(targets.end(), part.targets.begin(), part.targets.end());
    }
    EXPECT_EQ(tokens, plain(whole.tokens));
    EXPECT_EQ(targets, plain(whole.targets));
  }
}

TEST(TextBatches, one_long_document_gives_sequences_of_equal_length) {
  const TemporaryFolder folder;
  const auto corpus = corpus_of(folder, {std::string(1000, 'x')});
  TextBatches batches(Sampler({{corpus, {0, 900}, 1, "x"}}, 1, 16, 4), 4, 256);
  Batch batch;
  for (int64_t step = 0; step < 60; ++step) {
    batches.fill(step, 0, batch);
    ASSERT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 16, 32, 48, 64}));
    ASSERT_EQ(batch.num_targets, 64);
  }
}

TEST(TextBatches, an_id_that_the_model_lacks_is_a_user_error) {
  const TemporaryFolder folder;
  const auto corpus = corpus_of(folder, {std::string(50, 'x')});
  TextBatches batches(Sampler({{corpus, {0, 50}, 1, "x"}}, 1, 16, 1), 1, 100);
  Batch batch;
  EXPECT_NE(user_error([&] { batches.fill(0, 0, batch); }).find(" is 120, expected 0 to 99;"),
            std::string::npos);
}

TEST(SyntheticBatches, are_a_pure_function_that_fills_the_vocabulary) {
  const SyntheticShape shape{.sequence = 64, .batch = 4, .micro_batch = 2, .vocab_size = 50};
  SyntheticBatches a(1, shape), b(1, shape), other(2, shape);
  Batch first, second, third;
  a.fill(3, 1, first);
  b.fill(9, 0, second);
  b.fill(3, 1, second);
  other.fill(3, 1, third);
  EXPECT_EQ(plain(first.tokens), plain(second.tokens));
  EXPECT_NE(plain(first.tokens), plain(third.tokens));
  std::vector<int> seen(50);
  for (const int64_t id : first.tokens) ++seen.at(id);
  EXPECT_GT(std::count_if(seen.begin(), seen.end(), [](int n) { return n > 0; }), 40);
  EXPECT_EQ(first.num_targets, 128);
  a.fill(3, 0, third);
  EXPECT_NE(plain(first.tokens), plain(third.tokens));
}

TEST(ValidationSet, predicts_every_token_but_the_first_of_a_document_exactly_once) {
  const TemporaryFolder folder;
  const std::string texts[] = {"0123456789", "abc", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"};
  const auto corpus = corpus_of(folder, {texts[0], texts[1], texts[2]});
  for (const int64_t sequence : {1, 2, 4, 7, 39, 100}) {
    for (const int64_t batch_size : {1, 3}) {
      ValidationSet set({{corpus, {2, 39}}, {corpus, {0, 5}}}, make_bytes_tokenizer(), 256, sequence,
                        batch_size);
      std::string predicted;
      int64_t num_targets = 0, target_bytes = 0;
      Batch batch;
      for (int64_t i = 0; i < set.num_batches(); ++i) {
        set.fill(i, batch);
        ASSERT_EQ(batch.num_tokens(), sequence * batch_size) << "every batch has its full size";
        ASSERT_EQ(batch.num_sequences, batch_size);
        ASSERT_EQ(batch.cu_seqlens.back(), batch.num_tokens());
        num_targets += batch.num_targets;
        target_bytes += batch.target_bytes;
        for (const int64_t target : batch.targets) {
          if (target != kNoTarget) predicted += static_cast<char>(target);
        }
      }
      EXPECT_EQ(predicted,
                "3456789"
                "bc"
                "BCDEFGHIJKLMNOPQRSTUVWXYZ"
                "1234")
          << "sequence " << sequence;
      EXPECT_EQ(num_targets, static_cast<int64_t>(predicted.size()));
      EXPECT_EQ(target_bytes, num_targets);
    }
  }
}

TEST(ValidationSet, counts_the_bytes_that_tokens_stand_for) {
  const TemporaryFolder folder;
  const auto tokenizer = load_sentencepiece(source_file("tests/data/sentencepiece-test_model.model"));
  const std::string text = "I saw a girl with a telescope.";
  CorpusBuild build;
  build.files = {write_text(folder / "t.txt", text)};
  build.tokenizer = tokenizer;
  build.prefix = folder / "t";
  build_corpus(build);
  const auto corpus = Corpus::open(build.prefix);
  ValidationSet set({{corpus, {0, corpus->num_tokens()}}}, tokenizer, tokenizer->vocab_size(), 64, 1);
  Batch batch;
  set.fill(0, batch);
  const auto first = tokenizer->token_bytes(static_cast<int32_t>(batch.tokens[0])).size();
  EXPECT_EQ(batch.target_bytes, static_cast<int64_t>(text.size() + 1 - first))
      << "with the space put before the text";
  EXPECT_EQ(batch.num_targets, corpus->num_tokens() - 1);
}

TEST(ValidationSet, nothing_to_validate_gives_no_batches) {
  EXPECT_EQ(ValidationSet({}, nullptr, 10, 8, 2).num_batches(), 0);
}

}  // namespace
}  // namespace moebius::data
