#include "kernels/api/int4_gemm.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>
#include <vector>

#include "base/integers.h"
#include "base/parallel.h"
#include "kernels/cpu/int8_tile.h"

namespace moebius::kernels::cpu {
namespace {

struct Int4Case {
  std::vector<int32_t> counts;  // rows per matrix
  int64_t n, k, group;
  int64_t digits = 2;
  bool gather = false;
};

std::string named(const Int4Case& c) {
  return "matrices " + std::to_string(c.counts.size()) + " rows " + std::to_string(c.counts[0]) + " n " +
         std::to_string(c.n) + " k " + std::to_string(c.k) + " group " + std::to_string(c.group) +
         " digits " + std::to_string(c.digits);
}

// Codes, scales and rows of activations, and the products of them in double precision.
class Int4Problem {
 public:
  explicit Int4Problem(const Int4Case& c) : c_(c), groups_k_(int4_num_groups_k(c.k, c.group)) {
    for (const int32_t count : c.counts) offsets_.push_back(offsets_.back() + count);
    const int64_t matrices = static_cast<int64_t>(c.counts.size());
    rows_ = offsets_.back();
    stride_ = int4_padded_k(c.k, c.group);
    source_rows_ = c.gather ? rows_ / 2 + 1 : rows_;
    std::uniform_int_distribution<int> code(-127, 127), small(-7, 7);
    std::uniform_real_distribution<float> scale(0.5f, 2.0f);
    a_.assign(static_cast<size_t>(source_rows_ * c.digits * stride_), 128);
    for (int64_t r = 0; r < source_rows_ * c.digits; ++r) {
      for (int64_t i = 0; i < c.k; ++i)
        a_[static_cast<size_t>(r * stride_ + i)] = static_cast<uint8_t>(128 + code(random_));
      a_scales_.push_back(scale(random_) * (r % c.digits == 0 ? 1.0f : 1.0f / 254));
    }
    const int64_t row_bytes = ceil_div(c.k, int64_t{2});
    b_.assign(static_cast<size_t>(matrices * c.n * row_bytes), 0);
    for (int64_t row = 0; row < matrices * c.n; ++row) {
      for (int64_t i = 0; i < 2 * row_bytes; ++i) {
        const int value = i < c.k ? small(random_) : 0;
        codes_.push_back(value);
        b_[static_cast<size_t>(row * row_bytes + i / 2)] |= static_cast<uint8_t>((value + 8) << (i % 2 * 4));
      }
      for (int64_t g = 0; g < groups_k_; ++g) b_scales_.push_back(scale(random_));
    }
    for (int64_t r = 0; r < rows_; ++r)
      index_.push_back(c.gather
                           ? static_cast<int32_t>(random_() % static_cast<uint64_t>(2 * source_rows_ - 1))
                           : static_cast<int32_t>(r));
    for (int64_t i = 0; i < matrices * c.n; ++i) bias_.push_back(scale(random_));
  }

  std::vector<float> computed() const {
    const int64_t matrices = static_cast<int64_t>(c_.counts.size()),
                  padded = matrices * int8_padded_n(c_.n) * groups_k_;
    std::vector<uint8_t> memory(static_cast<size_t>(int4_packed_bytes(matrices, c_.n, c_.k, c_.group)) + 64);
    auto* const packed =
        reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    std::vector<float> scales(static_cast<size_t>(padded)), out(static_cast<size_t>(rows_ * c_.n), -1.0f);
    std::vector<int16_t> sums(scales.size());
    int4_pack(
        {b_.data(), b_scales_.data(), packed, scales.data(), sums.data(), matrices, c_.n, c_.k, c_.group});
    Int4GemmArgs args{};
    args.a = a_.data();
    args.a_scales = a_scales_.data();
    args.a_index = c_.gather ? index_.data() : nullptr;
    args.index_divisor = c_.gather ? 2 : 1;
    args.b = packed;
    args.b_scales = scales.data();
    args.b_sums = sums.data();
    args.bias = bias_.data();
    args.offsets = matrices > 1 ? offsets_.data() : nullptr;
    args.out = out.data();
    args.num_groups = matrices;
    args.num_rows = rows_;
    args.n = c_.n;
    args.k = c_.k;
    args.group = c_.group;
    args.a_stride = stride_;
    args.out_dtype = DType::f32;
    args.digits = c_.digits;
    int4_gemm(args);
    return out;
  }

  void expect_close(const std::vector<float>& out) const {
    for (size_t m = 0; m < c_.counts.size(); ++m)
      for (int64_t r = offsets_[m]; r < offsets_[m + 1]; ++r)
        for (int64_t n = 0; n < c_.n; ++n) {
          const int64_t source = c_.gather ? index_[static_cast<size_t>(r)] / 2 : r;
          const int64_t row = static_cast<int64_t>(m) * c_.n + n;
          double sum = bias_[static_cast<size_t>(row)], size = 0;
          for (int64_t d = 0; d < c_.digits; ++d)
            for (int64_t i = 0; i < c_.k; ++i) {
              const int64_t a_row = source * c_.digits + d;
              const double term = (a_[static_cast<size_t>(a_row * stride_ + i)] - 128.0) *
                                  a_scales_[static_cast<size_t>(a_row)] *
                                  codes_[static_cast<size_t>(row * 2 * ceil_div(c_.k, int64_t{2}) + i)] *
                                  b_scales_[static_cast<size_t>(row * groups_k_ + i / c_.group)];
              sum += term;
              size += std::abs(term);
            }
          ASSERT_NEAR(out[static_cast<size_t>(r * c_.n + n)], sum, 1e-5 * size + 1e-6)
              << named(c_) << " row " << r << " column " << n;
        }
  }

 private:
  Int4Case c_;
  int64_t groups_k_, rows_, source_rows_, stride_;
  std::mt19937_64 random_{7};
  std::vector<int32_t> offsets_{0}, index_;
  std::vector<uint8_t> a_, b_;
  std::vector<int> codes_;
  std::vector<float> a_scales_, b_scales_, bias_;
};

const std::vector<Int4Case>& int4_cases() {
  static const std::vector<Int4Case> all{{{1}, 33, 64, 64},
                                         {{5}, 32, 130, 64, 1},
                                         {{17}, 40, 257, 128},
                                         {{130}, 70, 128, 64},
                                         {{3, 0, 9}, 48, 96, 64, 2, true},
                                         {{2, 1}, 31, 4500, 128},
                                         {{1}, 1, 1, 64}};
  return all;
}

TEST(Int4Gemm, agrees_with_products_in_double_precision_for_every_instruction_set) {
  for (const Int8TileTable* tiles :
       {amx_int8_tiles(), avx512_vnni_tiles(), avx_vnni_tiles(), &portable_int8_tiles()}) {
    if (tiles == nullptr) continue;
    SCOPED_TRACE(tiles->name);
    set_int8_tiles(tiles);
    for (const Int4Case& c : int4_cases()) {
      const Int4Problem problem(c);
      problem.expect_close(problem.computed());
    }
  }
  set_int8_tiles(nullptr);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for (const Int4Case& c : int4_cases()) {
      const Int4Problem problem(c);
      problem.expect_close(problem.computed());
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(Int4Gemm, does_not_depend_on_the_number_of_threads) {
  const Int4Problem problem({{150, 31}, 200, 512, 128});
  const int before = num_threads();
  set_num_threads(1);
  const std::vector<float> one = problem.computed();
  set_num_threads(3);
  EXPECT_EQ(problem.computed(), one);
  set_num_threads(before);
}

}  // namespace
}  // namespace moebius::kernels::cpu
