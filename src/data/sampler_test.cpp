#include "data/sampler.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/corpus_builder.h"
#include "data/permutation.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

// A corpus whose token at position t is t, with documents of these lengths.
std::shared_ptr<const Corpus> counting_corpus(const TemporaryFolder& folder,
                                              const std::vector<int64_t>& lengths) {
  CorpusWriter writer(folder / "counting", TokenType::int32);
  int32_t next = 0;
  for (const int64_t length : lengths) {
    std::vector<int32_t> ids(length);
    std::iota(ids.begin(), ids.end(), next);
    next += static_cast<int32_t>(length);
    writer.add(ids);
    writer.end_document();
  }
  writer.finish({});
  return Corpus::open(folder / "counting");
}

SamplerSource whole(std::shared_ptr<const Corpus> corpus, double weight = 1) {
  const TokenRange range{0, corpus->num_tokens()};
  return {std::move(corpus), range, weight, "source"};
}

bool operator_equal(const Sequence& a, const Sequence& b) {
  return a.source == b.source && a.epoch == b.epoch && a.segments == b.segments;
}

int64_t length_of(const Sequence& sequence) {
  int64_t sum = 0;
  for (const Segment& s : sequence.segments) sum += s.size();
  return sum;
}

TEST(Permutation, is_a_bijection_for_every_size) {
  for (const int64_t size : {1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000, 4096, 5000}) {
    const Permutation permutation(size, 17);
    std::vector<bool> seen(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t element = permutation(i);
      ASSERT_TRUE(element >= 0 && element < size && !seen[element]) << "size " << size << ", position " << i;
      seen[element] = true;
    }
  }
}

TEST(Permutation, every_element_is_as_likely_at_every_position) {
  constexpr int kKeys = 20000, kSize = 6;
  int counts[kSize][kSize] = {};
  for (int key = 0; key < kKeys; ++key) {
    const Permutation permutation(kSize, key);
    for (int i = 0; i < kSize; ++i) ++counts[i][permutation(i)];
  }
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) {
      EXPECT_NEAR(counts[i][j], kKeys / kSize, kKeys / kSize / 10) << i << " -> " << j;
    }
  }
}

TEST(Blend, counts_stay_near_the_shares_at_every_moment) {
  const std::vector<double> weights = {5, 0, 1, 0.5, 3.5};
  const Blend blend(weights);
  std::vector<int64_t> counts(weights.size());
  for (int64_t n = 0; n < 20000; ++n) {
    const auto [source, index] = blend.pick(n);
    ASSERT_EQ(index, counts[source]) << "sequences of a source are numbered without gaps";
    ++counts[source];
    for (size_t s = 0; s < weights.size(); ++s) {
      ASSERT_NEAR(static_cast<double>(counts[s]), (n + 1) * weights[s] / 10, 3.0)
          << "source " << s << " at " << n;
    }
  }
  EXPECT_EQ(counts[1], 0) << "weight 0";
}

TEST(Blend, is_exact_far_into_a_run) {
  const Blend blend({1, 2});
  const int64_t far = int64_t{3} << 40;
  int64_t first = 0;
  for (int64_t n = far; n < far + 3000; ++n) first += blend.pick(n).source == 0;
  EXPECT_NEAR(static_cast<double>(first), 1000, 1);
}

TEST(EpochStream, every_window_of_an_epoch_comes_once_and_they_do_not_overlap) {
  const TemporaryFolder folder;
  std::vector<int64_t> lengths;
  for (int i = 0; i < 300; ++i) lengths.push_back(i * 7 % 31);  // some are empty
  const auto source = whole(counting_corpus(folder, lengths));
  constexpr int64_t kSequence = 16;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const EpochStream stream(source, 5, 0, epoch, kSequence);
    std::vector<int> used(source.range.size());
    std::vector<Segment> segments;
    const int64_t windows = EpochStream::num_windows(source.range.size(), kSequence);
    for (int64_t w = 0; w < windows; ++w) {
      stream.window(w, segments);
      int64_t left = kSequence;  // the last token is the next window's first
      for (const Segment& s : segments) {
        EXPECT_GT(s.size(), 0);
        EXPECT_EQ(source.corpus->document_at(s.begin), source.corpus->document_at(s.end - 1));
        for (int64_t t = s.begin; t < s.end && left > 0; ++t, --left) ++used[t];
      }
      EXPECT_EQ(left, 0);
    }
    EXPECT_EQ(*std::max_element(used.begin(), used.end()), 1);
    EXPECT_LT(std::count(used.begin(), used.end(), 0), 2 * kSequence) << "nearly every token is used";
  }
}

TEST(EpochStream, one_long_document_is_cut_elsewhere_and_shuffled_anew_in_each_epoch) {
  const TemporaryFolder folder;
  const auto source = whole(counting_corpus(folder, {10000}));
  constexpr int64_t kSequence = 64;
  std::set<int64_t> phases;
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 8; ++epoch) {
    const EpochStream stream(source, 1, 0, epoch, kSequence);
    std::vector<int64_t> order;
    std::vector<Segment> segments;
    for (int64_t w = 0; w < EpochStream::num_windows(10000, kSequence); ++w) {
      stream.window(w, segments);
      ASSERT_EQ(segments.size(), 1u) << "no document border inside a single document";
      ASSERT_EQ(segments[0].size(), kSequence + 1);
      order.push_back(segments[0].begin / kSequence);
      phases.insert(segments[0].begin % kSequence);
    }
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    orders.insert(order);
  }
  EXPECT_GE(phases.size(), 6u);
  EXPECT_EQ(orders.size(), 8u);
}

TEST(EpochStream, shortest_possible_source_has_one_window) {
  const TemporaryFolder folder;
  const auto source = whole(counting_corpus(folder, {4, 5}));
  EXPECT_EQ(EpochStream::num_windows(8, 8), 0);
  ASSERT_EQ(EpochStream::num_windows(9, 8), 1);
  std::vector<Segment> segments;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    EpochStream(source, 3, 0, epoch, 8).window(0, segments);
    ASSERT_EQ(segments.size(), 2u);
    EXPECT_EQ(segments[0].size() + segments[1].size(), 9);
  }
}

TEST(EpochStream, stays_inside_its_range) {
  const TemporaryFolder folder;
  SamplerSource source = whole(counting_corpus(folder, {50, 50, 50}));
  source.range = {30, 120};
  std::vector<Segment> segments;
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    const EpochStream stream(source, 9, 0, epoch, 10);
    for (int64_t w = 0; w < EpochStream::num_windows(90, 10); ++w) {
      stream.window(w, segments);
      for (const Segment& s : segments) EXPECT_TRUE(s.begin >= 30 && s.end <= 120) << s.begin << " " << s.end;
    }
  }
}

class SamplerTest : public testing::Test {
 protected:
  SamplerTest() {
    for (int64_t i = 0; i < 40; ++i) lengths.push_back(5 + i * 13 % 50);
    corpus = counting_corpus(folder, lengths);
  }
  Sampler sampler(uint64_t seed) { return Sampler({whole(corpus, 3), whole(corpus, 1)}, seed, 12, 4); }
  Sequence at(Sampler& s, int64_t step, int64_t index) {
    Sequence sequence;
    s.sequence(step, index, sequence);
    return sequence;
  }

  TemporaryFolder folder;
  std::vector<int64_t> lengths;
  std::shared_ptr<const Corpus> corpus;
};

TEST_F(SamplerTest, is_a_pure_function_of_seed_step_and_index) {
  Sampler forward = sampler(11), backward = sampler(11);
  constexpr int64_t kSteps = 120;  // several epochs
  std::vector<Sequence> seen;
  for (int64_t step = 0; step < kSteps; ++step) {
    for (int64_t i = 0; i < 4; ++i) seen.push_back(at(forward, step, i));
  }
  EXPECT_GE(seen.back().epoch, 3);
  for (int64_t step = kSteps; step-- > 0;) {
    for (int64_t i = 4; i-- > 0;) {
      ASSERT_TRUE(operator_equal(at(backward, step, i), seen[step * 4 + i]))
          << "step " << step << ", index " << i;
    }
  }
  Sampler resumed = sampler(11);
  EXPECT_TRUE(operator_equal(at(resumed, 77, 2), seen[77 * 4 + 2])) << "resume at a step continues the run";
}

TEST_F(SamplerTest, another_seed_gives_another_order) {
  Sampler a = sampler(1), b = sampler(2);
  int same = 0;
  for (int64_t step = 0; step < 50; ++step) same += at(a, step, 0).segments == at(b, step, 0).segments;
  EXPECT_LT(same, 5);
}

TEST_F(SamplerTest, every_sequence_has_one_token_more_than_its_length) {
  Sampler s = sampler(3);
  for (int64_t step = 0; step < 100; ++step) {
    for (int64_t i = 0; i < 4; ++i) ASSERT_EQ(length_of(at(s, step, i)), 13);
  }
}

TEST_F(SamplerTest, sources_come_in_proportion_to_their_weights) {
  Sampler s = sampler(3);
  int64_t first = 0;
  for (int64_t step = 0; step < 100; ++step) {
    for (int64_t i = 0; i < 4; ++i) first += at(s, step, i).source == 0;
  }
  EXPECT_EQ(first, 300);
}

TEST_F(SamplerTest, a_source_shorter_than_one_sequence_is_a_user_error) {
  SamplerSource source = whole(corpus);
  source.name = "data.files[1] (short.txt)";
  source.range = {0, 100};
  EXPECT_EQ(user_error([&] {
              Sampler({whole(corpus), source}, 1, 100, 1);
            }),
            "data.files[1] (short.txt) has 100 training tokens, but train.sequence is 100 and one sequence "
            "needs 101; "
            "lower train.sequence, give more text, or join short files to one corpus (moebius data build)");
  EXPECT_EQ(user_error([&] { Sampler({whole(corpus), source}, 1, 99, 1); }), "no error");
  source.weight = 0;
  EXPECT_EQ(user_error([&] {
              Sampler({whole(corpus), source}, 1, 100, 1);
            }),
            "no error")
      << "it is never drawn";
}

}  // namespace
}  // namespace moebius::data
