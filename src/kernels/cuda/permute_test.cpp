#include <algorithm>
#include <random>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

void check_permute(DType dtype, int64_t offset, int64_t tokens, int64_t top_k, int64_t width) {
  SCOPED_TRACE(std::to_string(tokens) + " x " + std::to_string(width) + ", top " + std::to_string(top_k));
  const int64_t slots = tokens * top_k;
  std::vector<int32_t> order(static_cast<size_t>(slots)), inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::shuffle(order.begin(), order.end(), std::mt19937(9));
  const size_t kept = order.size() - order.size() / 5;
  for (size_t r = 0; r < order.size(); ++r) {
    inverse[static_cast<size_t>(order[r])] = r < kept ? static_cast<int32_t>(r) : -1;
    if (r >= kept) order[r] = -1;
  }
  const Integers<int32_t> device_order(order), device_inverse(inverse);
  const Values src = Values::normal(dtype, tokens * width, 1, 1.0, offset),
               rows(dtype, slots * width, offset);
  gather_rows({src.data(), device_order.data(), rows.data(), slots, width, top_k, dtype}, nullptr);
  const size_t d = static_cast<size_t>(width), k = static_cast<size_t>(top_k);
  std::vector<double> expected(order.size() * d);
  for (size_t r = 0; r < kept; ++r) {
    for (size_t i = 0; i < d; ++i)
      expected[r * d + i] = src.start()[static_cast<size_t>(order[r]) / k * d + i];
  }
  EXPECT_EQ(rows.host(), expected);

  const Values y = Values::normal(dtype, slots * width, 2, 1.0, offset),
               weights = Values::normal(DType::f32, slots, 3);
  for (const bool weighted : {true, false}) {
    for (const bool added : {true, false}) {
      const Values add = Values::normal(dtype, tokens * width, 4, 1.0, offset),
                   fresh(dtype, tokens * width, offset);
      const Values& out = added ? add : fresh;  // in place where there is something to add
      combine_rows({y.data(), device_inverse.data(), weighted ? weights.floats() : nullptr,
                    added ? add.data() : nullptr, out.data(), tokens, width, top_k, dtype},
                   nullptr);
      std::vector<double> sum = added ? add.start() : std::vector<double>(static_cast<size_t>(tokens) * d);
      for (size_t slot = 0; slot < inverse.size(); ++slot) {
        if (inverse[slot] < 0) continue;
        for (size_t i = 0; i < d; ++i)
          sum[slot / k * d + i] += (weighted ? weights.start()[slot] : 1.0) *
                                   y.start()[static_cast<size_t>(inverse[slot]) * d + i];
      }
      expect_close("combined", out.host(), sum, dtype);
    }
  }
}

TEST(CudaPermute, gathers_exactly_and_combines_as_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    check_permute(dtype, offset, 1, 1, 8);
    check_permute(dtype, offset, 13, 3, 7);
    check_permute(dtype, offset, 61, 2, 384);
    check_permute(dtype, offset, 40, 8, 2048);
    check_permute(dtype, offset, 9, 32, 4096);
    check_permute(dtype, offset, 5, 6, 10240);
  });
}

}  // namespace
}  // namespace moebius::kernels::cuda
