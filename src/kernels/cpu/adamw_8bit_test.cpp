#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/api/moment_codes.h"
#include "kernels/api/optimizer.h"
#include "kernels/cpu/kernels.h"

namespace moebius::kernels {
namespace {

TEST(MomentCodes, every_code_is_its_own_and_the_largest_is_one) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    // What is a code's value stays that code, whatever the chance: minus zero is not one.
    if (code != 128) {
      EXPECT_EQ(encode_first_moment(decode_first_moment(byte), 0), byte);
      EXPECT_EQ(encode_first_moment(decode_first_moment(byte), 0xffffffffu), byte);
    }
    EXPECT_EQ(encode_second_moment(decode_second_moment(byte), 0), byte);
    EXPECT_EQ(encode_second_moment(decode_second_moment(byte), 0xffffffffu), byte);
    if (code > 1) {
      EXPECT_LT(decode_second_moment(static_cast<uint8_t>(code - 1)), decode_second_moment(byte));
    }
  }
  EXPECT_EQ(decode_second_moment(255), 1.0f);
  EXPECT_EQ(decode_first_moment(127), 1.0f);
  EXPECT_EQ(decode_first_moment(255), -1.0f);
  EXPECT_EQ(encode_first_moment(1.0f, 0xffffffffu), 127);
}

TEST(MomentCodes, rounding_takes_a_neighbour_and_keeps_the_mean) {
  for (const float x : {0.7f, 0.333f, 0.0101f, 1e-3f}) {
    double sum = 0, sum_signed = 0;
    constexpr uint32_t kDraws = 20000;
    for (uint32_t i = 0; i < kDraws; ++i) {
      const uint32_t chance = moment_chance(3, 1, i);
      const uint8_t code = encode_second_moment(x, chance);
      const float value = decode_second_moment(code);
      EXPECT_LE(std::fabs(value - x), x / 8);
      sum += value;
      sum_signed += decode_first_moment(encode_first_moment(-x, chance));
    }
    // The standard deviation of the mean is below x / 8 / sqrt(draws).
    EXPECT_NEAR(sum / kDraws, x, 4 * x / 8 / std::sqrt(kDraws));
    EXPECT_NEAR(sum_signed / kDraws, -x, 4 * x / 8 / std::sqrt(kDraws));
  }
}

TEST(MomentCodes, a_second_moment_above_zero_never_becomes_zero) {
  EXPECT_EQ(encode_second_moment(1e-20f, 0), 1);
  EXPECT_EQ(encode_second_moment(0.0f, 0xffffffffu), 0);
  EXPECT_EQ(encode_first_moment(1e-20f, 0xffffffffu), 0);
}

// A moment that decays by less than a code a step still decays.
TEST(AdamW8Bit, moments_without_gradients_fade_as_they_should) {
  constexpr int64_t kSize = 3 * kMomentBlock + 5;
  std::vector<float> param(kSize, 1.0f), grad(kSize), m_scale(4), v_scale(4);
  std::vector<uint8_t> m(kSize), v(kSize);
  for (int64_t i = 0; i < kSize; ++i) grad[i] = 0.1f * static_cast<float>(1 + i % 7);
  const float scale = 1.0f;
  AdamWTensor tensor{.param = param.data(),
                     .master = nullptr,
                     .grad = grad.data(),
                     .m = m.data(),
                     .v = v.data(),
                     .size = kSize,
                     .lr = 0.0f,
                     .weight_decay = 0.0f,
                     .param_dtype = DType::f32,
                     .grad_dtype = DType::f32,
                     .state_dtype = DType::f32,
                     .m_scale = m_scale.data(),
                     .v_scale = v_scale.data()};
  const auto run = [&](uint32_t step) {
    AdamWArgs args{{&tensor, 1}, 0.9f, 0.99f, 1e-8f, 1.0f, 1.0f, &scale};
    args.step = step;
    cpu::adamw_8bit(args, nullptr);
  };
  const auto total = [&] {
    double sum = 0;
    for (int64_t i = 0; i < kSize; ++i)
      sum += decode_second_moment(v[i]) * v_scale[static_cast<size_t>(i / kMomentBlock)];
    return sum;
  };
  run(1);
  const double first = total();
  std::fill(grad.begin(), grad.end(), 0.0f);
  constexpr uint32_t kSteps = 60;
  for (uint32_t step = 2; step < 2 + kSteps; ++step) run(step);
  EXPECT_NEAR(total() / first, std::pow(0.99, kSteps), 0.03);
  EXPECT_EQ(param[0], 1.0f);
}

}  // namespace
}  // namespace moebius::kernels
