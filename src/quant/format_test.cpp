#include "quant/format.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace moebius::quant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

at::Tensor row(const std::vector<float>& values) {
  return at::tensor(values).unsqueeze(0);
}

TEST(Int8Format, rounds_halves_to_even_and_clips_to_127) {
  const at::Tensor scale = at::ones({1});
  const at::Tensor codes =
      codes_of(row({0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f, 127.4f, 128.0f, -128.0f, 1e30f}), scale);
  const at::Tensor expected =
      at::tensor(std::vector<int>{0, 2, 2, 0, -2, 126, 127, 127, -127, 127}).to(at::kChar);
  EXPECT_TRUE(at::equal(codes, expected.unsqueeze(0))) << codes;
}

TEST(Int8Format, tensors_get_the_codes_of_the_scalar_definition) {
  at::manual_seed(3);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int bits : {2, 4, 6, 8}) {
      const at::Tensor x = (at::randn({37, 65}) * at::exp(at::randn({37, 1}) * 8)).to(dtype);
      const Quantised q = quantise(x, Granularity::per_row, bits);
      const int levels = kernels::levels_of_bits(bits);
      const at::Tensor values = x.to(at::kFloat);
      for (int64_t r = 0; r < x.size(0); ++r) {
        const float range = values[r].abs().max().item<float>();
        const float scale = kernels::scale_of_range(range, levels);
        ASSERT_EQ(q.scales[r].item<float>(), scale) << "row " << r;
        for (int64_t c = 0; c < x.size(1); ++c)
          ASSERT_EQ(q.codes[r][c].item<int8_t>(),
                    kernels::code_of(values[r][c].item<float>(), kernels::inverse_of_scale(scale), levels))
              << "at (" << r << ", " << c << "), " << bits << " bits";
      }
    }
}

TEST(Int8Format, the_largest_value_gets_the_largest_code) {
  at::manual_seed(4);
  for (const float factor : {1e-30f, 1e-6f, 1.0f, 1e6f, 1e30f}) {
    const at::Tensor x = at::randn({50, 33}) * factor;
    const Quantised q = quantise(x, Granularity::per_row);
    EXPECT_TRUE(q.codes.to(at::kInt).abs().amax(-1).eq(127).all().item<bool>()) << factor;
    const at::Tensor error = (dequantise(q.codes, q.scales) - x).abs();
    EXPECT_TRUE(error.le(q.scales * 0.50001).all().item<bool>()) << factor;
  }
}

TEST(Int8Format, zero_constant_and_tiny_rows_have_finite_codes) {
  const at::Tensor x = at::cat({row({0, 0, 0}), row({3, 3, 3}), row({1e-40f, 0, -1e-40f})});
  const Quantised q = quantise(x, Granularity::per_row);
  EXPECT_EQ(q.scales[0].item<float>(), 0.0f);
  EXPECT_EQ(q.scales[2].item<float>(), 0.0f);
  const at::Tensor back = dequantise(q.codes, q.scales);
  EXPECT_TRUE(at::equal(back[0], at::zeros({3})));
  EXPECT_TRUE(at::allclose(back[1], x[1], 1e-6));
  EXPECT_TRUE(at::equal(back[2], at::zeros({3})));
}

TEST(Int8Format, what_is_not_finite_shows_in_the_scale) {
  for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    const at::Tensor x = at::cat({row({1, bad, 2}), row({1, 2, 3})});
    const Quantised q = quantise(x, Granularity::per_row);
    EXPECT_TRUE(std::isnan(q.scales[0].item<float>()));
    EXPECT_FALSE(std::isnan(q.scales[1].item<float>()));
    EXPECT_TRUE(at::equal(q.codes[0], at::zeros({3}, at::kChar)));
    EXPECT_TRUE(rounded_to_codes(x, q.scales)[0].isnan().all().item<bool>());
    EXPECT_TRUE(std::isnan(quantise(x, Granularity::per_tensor).scales.item<float>()));
  }
}

TEST(Int8Format, one_scale_for_a_tensor_is_that_of_its_largest_value) {
  const Quantised q = quantise(at::cat({row({1, 2}), row({-254, 4})}), Granularity::per_tensor);
  EXPECT_EQ(q.scales.dim(), 0);
  EXPECT_EQ(q.scales.item<float>(), 2.0f);
  EXPECT_EQ(quantise(at::zeros({0, 4}), Granularity::per_tensor).scales.item<float>(), 0.0f);
  EXPECT_EQ(quantise(at::zeros({3, 0}), Granularity::per_row).scales.numel(), 3);
}

TEST(Int8Format, rounded_values_are_those_of_the_codes) {
  at::manual_seed(5);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({4, 9, 21}).to(dtype);
    // A range of half the largest value: some are clipped.
    const at::Tensor scales = scales_of(range_of(x, Granularity::per_row) / 2);
    EXPECT_TRUE(at::equal(rounded_to_codes(x, scales), dequantise(codes_of(x, scales), scales, dtype)));
  }
}

}  // namespace
}  // namespace moebius::quant
