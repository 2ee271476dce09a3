#include "data/planned_batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "data/corpus_builder.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

// Document i of the corpus has lengths[i] tokens; token t of it is (first + i) * 1000 + t.
std::shared_ptr<const Corpus> corpus_of(const TemporaryFolder& folder, const std::string& name,
                                        const std::vector<int64_t>& lengths, int64_t first = 0) {
  CorpusWriter writer(folder / name, TokenType::int32);
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < lengths[i]; ++t) {
      tokens.push_back(static_cast<int32_t>((first + static_cast<int64_t>(i)) * 1000 + t));
    }
    writer.add(tokens);
    writer.end_document();
  }
  writer.finish({});
  return Corpus::open(folder / name);
}

SamplerSource source_of(std::shared_ptr<const Corpus> corpus, double weight = 1) {
  const TokenRange all{0, corpus->num_tokens()};
  return {std::move(corpus), all, weight, "data.files[0] (texts)"};
}

std::vector<int64_t> mixed_lengths() {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 40; ++i) lengths.push_back(i * i % 37 + (i % 9 == 0 ? 60 : 0));
  return lengths;
}

const std::vector<std::string> kPolicies{"pad",       "three-buckets", "edges:8,16",
                                         "buckets:4", "pack",          "balanced"};

PlannedBatches::Options options_of(const std::string& policy, int64_t ranks = 1, int64_t rank = 0) {
  return {
      .batching = config::parse_batching(policy, "policy"),
      .shape = {.context = 32, .rows = 2, .micro_batches = 3, .ranks = ranks, .window = 20, .max_delay = 4},
      .cost = cost_of_width(64),
      .stream = {.seed = 5, .context = 32},
      .rank = rank,
      .vocab_size = 100000};
}

TEST(CorpusStream, deals_out_every_token_once_an_epoch_in_other_orders) {
  const TemporaryFolder folder;
  const auto lengths = mixed_lengths();
  CorpusStream stream({source_of(corpus_of(folder, "texts", lengths))}, {.seed = 3, .context = 32});
  std::vector<std::vector<Piece>> epochs(3);
  for (auto& epoch : epochs) {
    std::map<int64_t, std::map<int64_t, int64_t>> parts;
    int64_t left = 0;
    for (const int64_t length : lengths) left += length;
    while (left > 0) {
      const Piece piece = *stream.next();
      ASSERT_LE(piece.length, 32);
      ASSERT_TRUE(parts[piece.document].emplace(piece.begin, piece.begin + piece.length).second);
      left -= piece.length;
      epoch.push_back(piece);
    }
    for (size_t d = 0; d < lengths.size(); ++d) {
      int64_t at = 0;
      for (const auto& [begin, end] : parts[static_cast<int64_t>(d)]) {
        ASSERT_EQ(begin, at);
        at = end;
      }
      ASSERT_EQ(at, lengths[d]);
      const bool is_whole = lengths[d] > 0 && lengths[d] <= 32;
      ASSERT_TRUE(!is_whole || parts[static_cast<int64_t>(d)].size() == 1);
    }
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST(CorpusStream, goes_on_from_a_position) {
  const TemporaryFolder folder;
  const std::vector<SamplerSource> sources{source_of(corpus_of(folder, "a", mixed_lengths())),
                                           source_of(corpus_of(folder, "b", {5, 6, 7, 80}, 50), 2)};
  CorpusStream straight(sources, {.seed = 3, .context = 32});
  for (int i = 0; i < 300; ++i) {
    CorpusStream resumed(sources, {.seed = 3, .context = 32});
    resumed.seek(straight.position());
    const Piece expected = *straight.next();
    ASSERT_EQ(*resumed.next(), expected);
  }
}

TEST(CorpusStream, sources_share_tokens_by_weight) {
  const TemporaryFolder folder;
  CorpusStream stream(
      {source_of(corpus_of(folder, "a", {30, 20, 10}), 3), source_of(corpus_of(folder, "b", {1, 2, 3, 4}), 1),
       source_of(corpus_of(folder, "c", {9}), 0)},
      {.seed = 3, .context = 32});
  std::vector<int64_t> tokens(3);
  for (int i = 0; i < 5000; ++i) {
    const Piece piece = *stream.next();
    tokens[piece.source] += piece.length;
  }
  EXPECT_NEAR(static_cast<double>(tokens[0]) / static_cast<double>(tokens[1]), 3, 0.02);
  EXPECT_EQ(tokens[2], 0);
}

TEST(CorpusStream, refuses_what_it_cannot_train_on) {
  const TemporaryFolder folder;
  const auto with = [&](std::vector<int64_t> lengths, bool may_split) {
    const auto source = source_of(corpus_of(folder, "texts", lengths));
    return user_error([&] { CorpusStream({source}, {.seed = 3, .context = 32, .may_split = may_split}); });
  };
  EXPECT_EQ(with({5, 33, 40}, false),
            "data.files[0] (texts): document 1 has 33 tokens, more than the context of 32, and splitting is "
            "off; raise the context or allow splitting");
  EXPECT_EQ(with({5, 32}, false), "no error");
  EXPECT_EQ(with({1, 1, 0}, true),
            "data.files[0] (texts) has no document of two training tokens or more, so there is nothing to "
            "predict; give more text, or join short files to one corpus (moebius data build)");
}

TEST(ListStream, refuses_long_documents_when_splitting_is_off) {
  EXPECT_EQ(user_error([] {
              ListStream({4, 9, 11}, 8, false, "list.txt");
            }),
            "list.txt: document 1 has 9 tokens, more than the context of 8, and splitting is off; raise the "
            "context or allow splitting");
}

// Checks the layout of a batch and counts each prediction that it makes.
void check_batch(const Batch& batch, const std::vector<int64_t>& lengths,
                 std::map<std::pair<int64_t, int64_t>, int64_t>& predictions) {
  ASSERT_EQ(batch.num_tokens(), batch.num_sequences * batch.sequence_length);
  ASSERT_EQ(batch.cu_seqlens.front(), 0);
  ASSERT_EQ(batch.cu_seqlens.back(), batch.num_tokens());
  int64_t num_targets = 0;
  for (size_t d = 0; d + 1 < batch.cu_seqlens.size(); ++d) {
    const int64_t begin = batch.cu_seqlens[d], end = batch.cu_seqlens[d + 1];
    ASSERT_LE(end - begin, batch.max_seqlen);
    const bool is_padding = batch.tokens[begin] == 0;
    for (int64_t t = begin; t < end; ++t) {
      ASSERT_EQ(batch.positions[t], t - begin);
      if (is_padding) {
        ASSERT_EQ(batch.targets[t], kNoTarget);
        continue;
      }
      // Tokens of one document in their order, each with the next one as its target but for the last.
      const int64_t token = batch.tokens[t];
      if (t > begin) {
        ASSERT_EQ(token, batch.tokens[t - 1] + 1);
      }
      const bool is_last = token % 1000 == lengths[token / 1000 - 1] - 1;
      ASSERT_EQ(batch.targets[t], is_last ? kNoTarget : token + 1);
      num_targets += !is_last;
      if (!is_last) ++predictions[{token, batch.targets[t]}];
    }
  }
  ASSERT_EQ(batch.num_targets, num_targets);
}

TEST(PlannedBatches, every_policy_predicts_what_each_document_alone_would) {
  const TemporaryFolder folder;
  const auto lengths = mixed_lengths();
  const auto corpus = corpus_of(folder, "texts", lengths, 1);
  int64_t distinct = 0;
  for (const int64_t length : lengths) distinct += std::max<int64_t>(length - 1, 0);
  for (const std::string& policy : kPolicies) {
    PlannedBatches batches({source_of(corpus)}, options_of(policy));
    std::map<std::pair<int64_t, int64_t>, int64_t> predictions;
    Batch batch;
    for (int64_t step = 0; step < 200; ++step) {
      for (int64_t micro = 0; micro < 3; ++micro) {
        batches.fill(step, micro, batch);
        ASSERT_NO_FATAL_FAILURE(check_batch(batch, lengths, predictions)) << policy << " step " << step;
        ASSERT_GT(batch.num_tokens(), 0);
        ASSERT_LE(batch.num_tokens(), policy == "balanced" ? 80 : 64);
        if (policy == "pack") {
          ASSERT_EQ(batch.num_tokens(), 64);
        }
      }
    }
    EXPECT_EQ(static_cast<int64_t>(predictions.size()), distinct) << policy;
    int64_t least = 1000000, most = 0;
    for (const auto& [prediction, count] : predictions) {
      least = std::min(least, count);
      most = std::max(most, count);
    }
    EXPECT_LE(most - least, 2) << policy;  // epochs follow each other, and the window mixes two
  }
}

TEST(PlannedBatches, any_step_may_be_asked_for_at_any_time) {
  const TemporaryFolder folder;
  const auto corpus = corpus_of(folder, "texts", mixed_lengths());
  for (const std::string& policy : kPolicies) {
    PlannedBatches straight({source_of(corpus)}, options_of(policy));
    std::vector<std::vector<int64_t>> expected;
    Batch batch;
    for (int64_t step = 0; step < 12; ++step) {
      for (int64_t micro = 0; micro < 3; ++micro) {
        straight.fill(step, micro, batch);
        expected.emplace_back(batch.tokens.begin(), batch.tokens.end());
      }
    }
    PlannedBatches other({source_of(corpus)}, options_of(policy));
    for (const int64_t step : {7, 3, 4, 11, 0, 0, 10}) {
      for (const int64_t micro : {2, 0, 1}) {
        other.fill(step, micro, batch);
        EXPECT_EQ(batch.step, step);
        EXPECT_EQ(batch.micro, micro);
        ASSERT_EQ(std::vector<int64_t>(batch.tokens.begin(), batch.tokens.end()), expected[step * 3 + micro])
            << policy << " step " << step;
      }
    }
  }
}

TEST(PlannedBatches, ranks_share_out_the_step) {
  const TemporaryFolder folder;
  const auto lengths = mixed_lengths();
  const auto corpus = corpus_of(folder, "texts", lengths, 1);
  for (const std::string& policy : kPolicies) {
    std::map<std::pair<int64_t, int64_t>, int64_t> predictions;
    Batch batch;
    for (int64_t rank = 0; rank < 2; ++rank) {
      PlannedBatches batches({source_of(corpus)}, options_of(policy, 2, rank));
      for (int64_t micro = 0; micro < 3; ++micro) {
        batches.fill(0, micro, batch);
        ASSERT_NO_FATAL_FAILURE(check_batch(batch, lengths, predictions));
      }
    }
    for (const auto& [prediction, count] : predictions) ASSERT_EQ(count, 1) << policy;
  }
}

TEST(PlannedBatches, the_seed_decides_the_order) {
  const TemporaryFolder folder;
  const auto corpus = corpus_of(folder, "texts", mixed_lengths());
  PlannedBatches::Options options = options_of("pack");
  Batch a, b;
  PlannedBatches({source_of(corpus)}, options).fill(0, 0, a);
  options.stream.seed = 6;
  PlannedBatches({source_of(corpus)}, options).fill(0, 0, b);
  EXPECT_NE(a.tokens, b.tokens);
}

}  // namespace
}  // namespace moebius::data
