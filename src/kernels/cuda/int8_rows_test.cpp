// Quantised rows, packed and transposed weights, compared exactly with the format's own functions
// (kernels/api/int8_format.h).
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

struct CodedRow {
  std::vector<int8_t> codes, rest;
  float scale = 0.0f, rest_scale = 0.0f;
};

CodedRow coded(const std::vector<float>& x, int64_t stride, float static_scale) {
  CodedRow row;
  row.codes.assign(static_cast<size_t>(stride), 0);
  row.rest = row.codes;
  float range = 0.0f;
  for (const float v : x)
    range = std::isfinite(v) ? std::max(range, std::abs(v)) : std::numeric_limits<float>::infinity();
  bool finite = true;
  for (const float v : x) finite = finite && std::isfinite(v);
  row.scale = finite ? scale_of_range(range) : std::numeric_limits<float>::quiet_NaN();
  if (static_scale > 0.0f && finite) row.scale = static_scale;
  const float inverse = inverse_of_scale(row.scale);
  row.rest_scale = row.scale / 254;
  const float rest_inverse = inverse > 0.0f ? inverse_of_scale(row.rest_scale) : 0.0f;
  for (size_t i = 0; i < x.size() && inverse > 0.0f; ++i) {
    const int32_t code = code_of(x[i], inverse);
    row.codes[i] = static_cast<int8_t>(code);
    if (rest_inverse > 0.0f)
      row.rest[i] =
          static_cast<int8_t>(code_of(std::fma(-static_cast<float>(code), row.scale, x[i]), rest_inverse));
  }
  return row;
}

void check_quantised(DType dtype, int64_t offset, int64_t rows, int64_t width, int64_t digits, bool gather,
                     float static_scale, bool factors) {
  SCOPED_TRACE(std::to_string(rows) + " rows of " + std::to_string(width) + ", " + std::to_string(digits) +
               " digits");
  std::mt19937 random(11);
  std::normal_distribution<double> normal(0.0, 1.0);
  std::vector<double> x(static_cast<size_t>(rows * width));
  for (double& v : x) v = normal(random);
  if (rows > 4) {
    x[static_cast<size_t>(width)] = std::numeric_limits<double>::quiet_NaN();
    x[static_cast<size_t>(3 * width - 1)] = std::numeric_limits<double>::infinity();
    std::fill_n(x.begin() + 3 * width, width, 0.0);
    for (int64_t i = 0; i < width; ++i) x[static_cast<size_t>(4 * width + i)] *= 1e-39;
  }
  const Values in(dtype, x, offset);
  const int64_t stride = int8_padded_k(width), divisor = 2, groups = 3;
  std::vector<int32_t> index;
  for (int64_t r = 0; r < rows; ++r)
    index.push_back(r == 2 ? -1 : static_cast<int32_t>((r * 31 + 7) % (rows * divisor)));
  const std::vector<int32_t> offsets{0, static_cast<int32_t>(rows / 3), static_cast<int32_t>(rows / 3),
                                     static_cast<int32_t>(rows)};
  std::vector<float> factor(static_cast<size_t>(groups * width));
  for (float& f : factor) f = static_cast<float>(0.5 + std::abs(normal(random)));
  const Integers<int32_t> index_on_device(index), offsets_on_device(offsets);
  const Integers<float> factors_on_device(factor);
  const Integers<uint8_t> codes(rows * digits * stride);
  const Integers<float> scales(rows * digits);
  Int8RowsArgs args{};
  args.x = in.data();
  args.index = gather ? index_on_device.data() : nullptr;
  args.index_divisor = gather ? divisor : 1;
  args.codes = codes.data();
  args.scales = scales.data();
  args.static_scale = static_scale > 0.0f ? &static_scale : nullptr;
  args.num_rows = rows;
  args.width = args.x_stride = width;
  args.codes_stride = stride;
  args.dtype = dtype;
  args.digits = digits;
  if (factors) {
    args.column_scales = factors_on_device.data();
    args.offsets = offsets_on_device.data();
    args.num_groups = groups;
  }
  int8_rows(args, nullptr);
  const std::vector<uint8_t> got = codes.host();
  const std::vector<float> got_scales = scales.host();
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t slot = gather ? index[static_cast<size_t>(r)] : static_cast<int32_t>(r);
    std::vector<float> row(static_cast<size_t>(width), 0.0f);
    const int64_t group = r < rows / 3 ? 0 : 2;
    for (int64_t i = 0; slot >= 0 && i < width; ++i) {
      const int64_t source = gather ? slot / divisor : slot;
      const auto v = static_cast<float>(in.start()[static_cast<size_t>(source * width + i)]);
      row[static_cast<size_t>(i)] = factors ? v * factor[static_cast<size_t>(group * width + i)] : v;
    }
    const CodedRow want = coded(row, stride, slot >= 0 ? static_scale : 0.0f);
    for (int64_t digit = 0; digit < digits; ++digit) {
      const float scale = digit == 0 ? want.scale : want.rest_scale,
                  found = got_scales[static_cast<size_t>(digit * rows + r)];
      ASSERT_TRUE(scale == found || (std::isnan(scale) && std::isnan(found)))
          << "scale of row " << r << ", digit " << digit << ": " << found << " instead of " << scale;
      const std::vector<int8_t>& expected = digit == 0 ? want.codes : want.rest;
      for (int64_t i = 0; i < stride; ++i)
        ASSERT_EQ(
            static_cast<int>(static_cast<int8_t>(got[static_cast<size_t>((digit * rows + r) * stride + i)])),
            static_cast<int>(expected[static_cast<size_t>(i)]))
            << "code of row " << r << ", column " << i << ", digit " << digit;
    }
  }
}

TEST(CudaInt8Rows, codes_and_scales_are_the_formats) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    for (const int64_t width : {1, 7, 64, 256, 1000, 2048, 5000, 14336})
      for (const int64_t digits : {1, 2}) {
        check_quantised(dtype, offset, width > 4000 ? 6 : 21, width, digits, false, 0.0f, false);
        if (testing::Test::HasFailure()) return;
      }
    check_quantised(dtype, offset, 40, 128, 1, true, 0.0f, false);
    check_quantised(dtype, offset, 40, 128, 2, true, 0.0f, true);
    check_quantised(dtype, offset, 40, 4096, 1, true, 0.0f, true);
    check_quantised(dtype, offset, 40, 96, 1, false, 0.01f, false);
  });
}

TEST(CudaInt8Rows, weights_are_filled_up) {
  MOEBIUS_NEEDS_DEVICE();
  for (const auto& [groups, n, k] :
       std::vector<std::array<int64_t, 3>>{{1, 8, 16}, {3, 13, 21}, {2, 16, 40}}) {
    std::mt19937 random(3);
    std::vector<int8_t> codes(static_cast<size_t>(groups * n * k));
    std::vector<float> scales(static_cast<size_t>(groups * n));
    for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
    for (float& scale : scales) scale = static_cast<float>(random() % 100 + 1);
    const Integers<int8_t> from(codes);
    const Integers<float> from_scales(scales);
    const int64_t padded_n = int8_padded_n(n, Int8Layout::rows), padded_k = int8_padded_k(k);
    for (const bool one_scale : {false, true}) {
      const Integers<int8_t> packed(int8_packed_bytes(groups, n, k, Int8Layout::rows));
      const Integers<float> packed_scales(groups * padded_n);
      int8_pack({from.data(), from_scales.data(), packed.data(), packed_scales.data(), nullptr, groups, n, k,
                 one_scale, Int8Columns::plain},
                nullptr);
      const std::vector<int8_t> got = packed.host();
      const std::vector<float> got_scales = packed_scales.host();
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t j = 0; j < padded_n; ++j) {
          const float scale = j >= n ? 0.0f : scales[one_scale ? 0 : static_cast<size_t>(g * n + j)];
          ASSERT_EQ(got_scales[static_cast<size_t>(g * padded_n + j)], scale);
          for (int64_t i = 0; i < padded_k; ++i)
            ASSERT_EQ(static_cast<int>(got[static_cast<size_t>((g * padded_n + j) * padded_k + i)]),
                      j < n && i < k ? static_cast<int>(codes[static_cast<size_t>((g * n + j) * k + i)]) : 0)
                << "group " << g << ", row " << j << ", column " << i;
        }
    }
  }
}

TEST(CudaInt8Rows, weights_are_transposed) {
  MOEBIUS_NEEDS_DEVICE();
  for (const auto& [groups, n, k] :
       std::vector<std::array<int64_t, 3>>{{1, 16, 16}, {3, 128, 256}, {2, 144, 400}, {5, 48, 1024}}) {
    std::vector<int8_t> codes(static_cast<size_t>(groups * n * k));
    std::mt19937 random(4);
    for (int8_t& code : codes) code = static_cast<int8_t>(random() & 0xff);
    const Integers<int8_t> from(codes), to(groups * n * k);
    int8_transpose({from.data(), to.data(), groups, n, k}, nullptr);
    const std::vector<int8_t> got = to.host();
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < n; ++j)
          ASSERT_EQ(static_cast<int>(got[static_cast<size_t>((g * k + i) * n + j)]),
                    static_cast<int>(codes[static_cast<size_t>((g * n + j) * k + i)]))
              << groups << " of " << n << " x " << k << ": group " << g << ", " << i << ", " << j;
  }
}

}  // namespace
}  // namespace moebius::kernels::cuda
