#include "ckpt/hf/quantised.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "base/parallel.h"

namespace moebius::ckpt::hf {
namespace {

// The values of a float of 8 bits: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, one NaN.
// (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1)
std::array<float, 256> e4m3_values() {
  std::array<float, 256> values{};
  for (int bits = 0; bits < 128; ++bits) {
    const int exponent = bits >> 3, mantissa = bits & 7;
    const double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    values[static_cast<size_t>(bits)] = bits == 127 ? std::nanf("") : static_cast<float>(value);
    values[static_cast<size_t>(bits) + 128] = -values[static_cast<size_t>(bits)];
  }
  return values;
}

// Of 4 bits: sign, 2 of exponent (bias 1), 1 of mantissa.
constexpr std::array<float, 16> kE2m1{0, 0.5F, 1, 1.5F, 2, 3, 4, 6, -0.0F, -0.5F, -1, -1.5F, -2, -3, -4, -6};

}  // namespace

at::Tensor widen_fp8_blocks(const at::Tensor& values_RC, const at::Tensor& scales, int64_t block_rows,
                            int64_t block_columns) {
  const int64_t rows = values_RC.size(0), columns = values_RC.size(1);
  const at::Tensor factors = scales.to(at::kFloat).contiguous();
  MOEBIUS_CHECK(factors.size(0) * block_rows >= rows && factors.size(1) * block_columns >= columns,
                "scales of the shape ", factors.sizes(), " for ", values_RC.sizes());
  static const std::array<float, 256> kValues = e4m3_values();
  at::Tensor wide_RC = at::empty({rows, columns}, at::kBFloat16);
  const auto* const in = static_cast<const uint8_t*>(values_RC.const_data_ptr());
  const auto* const factor = factors.const_data_ptr<float>();
  auto* const out = wide_RC.mutable_data_ptr<at::BFloat16>();
  parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t first = 0, block = 0; first < columns; first += block_columns, ++block) {
        const float scale = factor[row / block_rows * factors.size(1) + block];
        const int64_t last = std::min(first + block_columns, columns);
        for (int64_t i = row * columns + first; i < row * columns + last; ++i)
          out[i] = at::BFloat16(kValues[in[i]] * scale);
      }
  });
  return wide_RC;
}

at::Tensor widen_mxfp4(const at::Tensor& blocks_RG16, const at::Tensor& scales_RG) {
  const int64_t rows = blocks_RG16.size(0), groups = blocks_RG16.size(1), width = blocks_RG16.size(2);
  MOEBIUS_CHECK(scales_RG.size(0) == rows && scales_RG.size(1) == groups, "scales of the shape ",
                scales_RG.sizes(), " for ", blocks_RG16.sizes());
  at::Tensor wide = at::empty({rows, groups * width * 2}, at::kBFloat16);
  const auto* const in = blocks_RG16.const_data_ptr<uint8_t>();
  const auto* const exponent = scales_RG.const_data_ptr<uint8_t>();
  auto* const out = wide.mutable_data_ptr<at::BFloat16>();
  parallel_for(0, rows * groups, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      // 255 stands for NaN in the format.
      const float scale = exponent[group] == 255 ? std::nanf("") : std::ldexp(1.0F, exponent[group] - 127);
      for (int64_t i = group * width; i < (group + 1) * width; ++i) {
        out[2 * i] = at::BFloat16(kE2m1[in[i] & 15] * scale);
        out[2 * i + 1] = at::BFloat16(kE2m1[in[i] >> 4] * scale);
      }
    }
  });
  return wide;
}

}  // namespace moebius::ckpt::hf
