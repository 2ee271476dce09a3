#include "base/philox.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <vector>

namespace moebius {
namespace {

// kat_vectors of Random123 (the authors' library), "philox4x32 10".
TEST(Philox, known_answers) {
  constexpr uint32_t kAll = 0xffffffff;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({kAll, kAll, kAll, kAll}, {kAll, kAll}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, streams_differ_by_seed_purpose_step_and_index) {
  std::set<uint64_t> seen;
  int drawn = 0;
  for (const uint64_t seed : {0, 1, 2}) {
    for (const char* purpose : {"init", "shuffle", ""}) {
      for (const uint64_t step : {0ull, 1ull, 1ull << 40}) {
        for (const uint64_t index : {0ull, 1ull, 2ull, 1ull << 40}) {
          seen.insert(Philox(seed, purpose, step).bits64(index));
          ++drawn;
        }
      }
    }
  }
  EXPECT_EQ(static_cast<int>(seen.size()), drawn);
  EXPECT_EQ(Philox(1, "a").at_step(9).bits64(3), Philox(1, "a", 9).bits64(3));
}

// The numbers are part of the format of a run: a resumed run and a golden curve depend on them.
TEST(Philox, values_stay_as_they_are) {
  const Philox random(1234, "init", 7);
  EXPECT_EQ(random.bits32(0), 2363805649u);
  EXPECT_EQ(random.bits64(5), 14654884774533918911u);
  EXPECT_FLOAT_EQ(random.normal(2), 0.53753328f);
}

TEST(Philox, filling_equals_drawing_one_by_one) {
  const Philox random(5, "fill");
  for (const uint64_t first : {0, 1, 2, 3, 6}) {
    std::vector<float> normals(11), uniforms(11);
    random.fill_normal(normals, first);
    random.fill_uniform(uniforms, first);
    for (uint64_t i = 0; i < 11; ++i) {
      EXPECT_EQ(normals[i], random.normal(first + i));
      EXPECT_EQ(uniforms[i], random.uniform(first + i));
    }
  }
}

TEST(Philox, moments_are_those_of_the_distributions) {
  const Philox random(42, "moments");
  constexpr int kCount = 200'000;
  double sum = 0, squares = 0, cubes = 0, uniform_sum = 0, uniform_min = 1, uniform_max = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.normal(i), u = random.uniform_double(i);
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
    cubes += x * x * x;
    uniform_sum += u;
    uniform_min = std::min(uniform_min, u);
    uniform_max = std::max(uniform_max, u);
  }
  // Five standard errors of each mean.
  const double error = 5 / std::sqrt(kCount);
  EXPECT_LT(std::abs(sum / kCount), error);
  EXPECT_LT(std::abs(squares / kCount - 1), error * std::sqrt(2.0));
  EXPECT_LT(std::abs(cubes / kCount), error * std::sqrt(15.0));
  EXPECT_LT(std::abs(uniform_sum / kCount - 0.5), error / std::sqrt(12.0));
  EXPECT_GE(uniform_min, 0);
  EXPECT_LT(uniform_max, 1);
}

TEST(Philox, below_stays_below_and_is_even) {
  const Philox random(3, "below");
  std::vector<int> counts(10);
  for (int i = 0; i < 100'000; ++i) ++counts[random.below(i, 10)];
  double chi_squared = 0;
  for (const int count : counts) chi_squared += (count - 10'000.0) * (count - 10'000.0) / 10'000;
  EXPECT_LT(chi_squared, 30);  // 9 degrees of freedom: p < 0.0005
  EXPECT_EQ(random.below(7, 1), 0u);
}

}  // namespace
}  // namespace moebius
