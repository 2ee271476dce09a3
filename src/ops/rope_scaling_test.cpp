// Values of the formulas in Transformers' modeling_rope_utils.py (5.17), evaluated in double precision by an
// independent program.
#include "ops/rope_scaling.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ops/rope.h"

namespace moebius::ops {
namespace {

using Kind = RopeScaling::Kind;

void expect_frequencies(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_DOUBLE_EQ(got[i], want[i]) << "pair " << i;
}

RopeScaling yarn(bool truncate) {
  RopeScaling scaling;
  scaling.kind = Kind::yarn;
  scaling.factor = 40;
  scaling.original_context = 4096;
  scaling.truncate = truncate;
  return scaling;
}

TEST(RopeScaling, linear_divides_all_frequencies) {
  const RopeScaling scaling{.kind = Kind::linear, .factor = 4};
  expect_frequencies(rope_frequencies(4, 100, scaling, 0), {0.25, 0.025});
  EXPECT_EQ(rope_attention_factor(scaling), 1.0);
}

TEST(RopeScaling, yarn_ramps_between_kept_and_divided_frequencies) {
  expect_frequencies(rope_frequencies(16, 1e4, yarn(true), 0),
                     {1.0, 0.31622776601683794, 0.1, 0.023914724805023366, 0.005125, 0.0008498621211702518,
                      2.5e-05, 7.905694150420947e-06});
  expect_frequencies(rope_frequencies(16, 1e4, yarn(false), 0),
                     {1.0, 0.31622776601683794, 0.1, 0.02771085847508042, 0.005524062977468265,
                      0.0007226383418941806, 2.5e-05, 7.905694150420947e-06});
}

TEST(RopeScaling, llama3_keeps_short_wavelengths_and_stretches_long_ones) {
  const RopeScaling scaling{.kind = Kind::llama3, .factor = 8, .original_context = 8192};
  expect_frequencies(
      rope_frequencies(16, 5e5, scaling, 0),
      {1.0, 0.19392274474868576, 0.03760603093086393, 0.0072926647372171085, 0.0005248461609929547,
       3.428102195952591e-05, 6.647869871181236e-06, 1.2891731721515574e-06});
}

TEST(RopeScaling, dynamic_depends_on_the_sequence_seen) {
  const RopeScaling scaling{.kind = Kind::dynamic, .factor = 2, .original_context = 1024};
  for (const int64_t context : {1, 1024})
    expect_frequencies(rope_frequencies(16, 1e4, scaling, context), rope_frequencies(16, 1e4, {}, 0));
  expect_frequencies(
      rope_frequencies(16, 1e4, scaling, 4096),
      {1.0, 0.2394813560059838, 0.05735131987446476, 0.013734571852269752, 0.003289173891343177,
       0.0007876958236383426, 0.00018863846396516057, 4.517539514526257e-05});
  expect_frequencies(rope_frequencies(2, 1e4, scaling, 4096), {1.0});
}

TEST(RopeScaling, the_attention_factor_follows_what_is_given) {
  RopeScaling scaling = yarn(true);
  const double log = std::log(40.0);
  EXPECT_DOUBLE_EQ(rope_attention_factor(scaling), 0.1 * log + 1);
  EXPECT_EQ(rope_score_factor(scaling), 1.0);
  scaling.mscale = 0.5;
  EXPECT_DOUBLE_EQ(rope_attention_factor(scaling), 0.1 * log + 1) << "mscale alone counts for nothing";
  scaling.mscale_all_dim = 0.707;
  EXPECT_DOUBLE_EQ(rope_attention_factor(scaling), (0.05 * log + 1) / (0.0707 * log + 1));
  EXPECT_DOUBLE_EQ(rope_score_factor(scaling), std::pow(0.0707 * log + 1, 2));
  scaling.attention_factor = 1.25;
  EXPECT_EQ(rope_attention_factor(scaling), 1.25);
  scaling.attention_factor = 0;
  scaling.factor = 1;
  EXPECT_EQ(rope_attention_factor(scaling), 1.0);
  EXPECT_EQ(rope_score_factor(scaling), 1.0);
}

TEST(RopeScaling, the_table_has_the_frequencies_and_the_factor) {
  const RopeScaling scaling = yarn(true);
  const at::Tensor table = rope_table(5, 16, 1e4, at::kCPU, scaling);
  const std::vector<double> frequency = rope_frequencies(16, 1e4, scaling, 0);
  const double factor = rope_attention_factor(scaling);
  for (int64_t p = 0; p < 5; ++p)
    for (int64_t i = 0; i < 8; ++i) {
      const double angle = static_cast<double>(p) * frequency[static_cast<size_t>(i)];
      EXPECT_FLOAT_EQ(table[p][i].item<float>(), static_cast<float>(factor * std::cos(angle)));
      EXPECT_FLOAT_EQ(table[p][8 + i].item<float>(), static_cast<float>(factor * std::sin(angle)));
    }
}

}  // namespace
}  // namespace moebius::ops
