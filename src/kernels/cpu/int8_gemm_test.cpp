#include "kernels/api/int8_gemm.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/kernels.h"

namespace moebius::kernels::cpu {
namespace {

struct Int8Case {
  std::vector<int32_t> counts;  // rows per group
  int64_t n, k;
  bool gather = false;
  int64_t divisor = 1;
  bool swiglu = false;
  DType out = DType::f32;
  bool bias = false;
  int64_t unused_rows = 0;
};

std::string describe(const Int8Case& c) {
  std::string text = "rows";
  for (const int32_t count : c.counts) text += " " + std::to_string(count);
  return text + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + (c.gather ? " gather" : "") +
         " / " + std::to_string(c.divisor) + (c.swiglu ? " swiglu" : "") + (c.bias ? " bias" : "") +
         (c.out == DType::f32 ? " f32" : " bf16");
}

// Memory aligned as packed weights must be.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : memory_(static_cast<size_t>(count) + 64 / sizeof(T)),
        data_(reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64)) {}
  T* data() { return data_; }

 private:
  std::vector<T> memory_;
  T* data_;
};

class Int8Problem {
 public:
  explicit Int8Problem(const Int8Case& c)
      : c_(c),
        groups_(static_cast<int64_t>(c.counts.size())),
        stride_(int8_padded_k(c.k) + 16),
        packed_(int8_packed_bytes(groups_, c.n, c.k)) {
    for (const int32_t count : c.counts) offsets_.push_back(offsets_.back() + count);
    used_ = offsets_.back();
    rows_ = used_ + c.unused_rows;
    source_rows_ = c.gather ? rows_ / c.divisor + 3 : rows_;
    std::uniform_int_distribution<int> code(-127, 127);
    a_.assign(static_cast<size_t>(source_rows_ * stride_), 128);
    for (int64_t r = 0; r < source_rows_; ++r)
      for (int64_t i = 0; i < c.k; ++i)
        a_[static_cast<size_t>(r * stride_ + i)] = static_cast<uint8_t>(128 + code(random_));
    for (int64_t i = 0; i < groups_ * c.n * c.k; ++i) b_.push_back(static_cast<int8_t>(code(random_)));
    std::uniform_real_distribution<float> scale(0.5f, 2.0f);
    const auto width = static_cast<float>(c.k + 1);
    for (int64_t r = 0; r < source_rows_; ++r) a_scales_.push_back(scale(random_) / 127);
    for (int64_t i = 0; i < groups_ * c.n; ++i) b_scales_.push_back(scale(random_) / 127 / std::sqrt(width));
    for (int64_t i = 0; i < groups_ * c.n; ++i) bias_.push_back(scale(random_));
    std::uniform_int_distribution<int32_t> pick(0, static_cast<int32_t>(source_rows_ * c.divisor - 1));
    for (int64_t r = 0; r < rows_; ++r) index_.push_back(r < used_ ? pick(random_) : -1);
    packed_scales_.resize(static_cast<size_t>(groups_ * int8_padded_n(c.n)));
    packed_offsets_.resize(packed_scales_.size());
    Int8PackArgs pack{};
    pack.codes = b_.data();
    pack.scales = b_scales_.data();
    pack.packed = packed_.data();
    pack.packed_scales = packed_scales_.data();
    pack.offsets = packed_offsets_.data();
    pack.num_groups = groups_;
    pack.n = c.n;
    pack.k = c.k;
    pack.columns = c.swiglu ? Int8Columns::gate_up : Int8Columns::plain;
    int8_pack(pack, nullptr);
  }

  // Integer sums, exactly.
  void expect_exact_sums(int threads) {
    if (c_.swiglu) return;  // columns are in another order there
    std::vector<int32_t> sums(static_cast<size_t>(rows_ * c_.n), 77);
    run(threads, nullptr, sums.data());
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t j = 0; j < c_.n; ++j) {
        const int64_t want = r < used_ ? exact(r, j) : 77;
        ASSERT_EQ(sums[static_cast<size_t>(r * c_.n + j)], want)
            << describe(c_) << ", " << threads << " threads: at (" << r << ", " << j << ")";
      }
  }

  std::vector<float> output(int threads) {
    const int64_t width = c_.swiglu ? c_.n / 2 : c_.n;
    std::vector<float> f(static_cast<size_t>(rows_ * width), -5);
    if (c_.out == DType::f32) {
      run(threads, f.data(), nullptr);
      return f;
    }
    std::vector<Bf16> h(f.size());
    for (Bf16& value : h) from_float(-5, value);
    run(threads, h.data(), nullptr);
    for (size_t i = 0; i < f.size(); ++i) f[i] = to_float(h[i]);
    return f;
  }

  void expect_right(const std::vector<float>& out) const {
    const int64_t width = c_.swiglu ? c_.n / 2 : c_.n;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t j = 0; j < width; ++j) {
        const double got = out[static_cast<size_t>(r * width + j)];
        if (r >= used_) {
          ASSERT_EQ(got, -5) << describe(c_) << ": unused row " << r << " was written";
          continue;
        }
        double want = 0, magnitude = 0;
        if (c_.swiglu) {
          const double gate = value(r, 2 * j), up = value(r, 2 * j + 1);
          want = gate / (1 + std::exp(-gate)) * up;
          magnitude = std::abs(want);
        } else {
          const double product = value(r, j),
                       bias = c_.bias ? bias_[static_cast<size_t>(group_of(r) * c_.n + j)] : 0;
          want = product + bias;
          magnitude = std::abs(product) + std::abs(bias);
        }
        const double unit = c_.out == DType::f32 ? 1e-6 : 4e-3;
        ASSERT_NEAR(got, want, unit * (magnitude + 1e-3))
            << describe(c_) << ": at (" << r << ", " << j << ")";
      }
  }

 private:
  int64_t source(int64_t r) const { return c_.gather ? index_[static_cast<size_t>(r)] / c_.divisor : r; }
  int64_t group_of(int64_t r) const {
    int64_t g = 0;
    while (r >= offsets_[static_cast<size_t>(g + 1)]) ++g;
    return g;
  }
  int64_t exact(int64_t r, int64_t j) const {
    const uint8_t* a = a_.data() + source(r) * stride_;
    const int8_t* b = b_.data() + (group_of(r) * c_.n + j) * c_.k;
    int64_t sum = 0;
    for (int64_t i = 0; i < c_.k; ++i) sum += (a[i] - 128) * b[i];
    return sum;
  }
  double value(int64_t r, int64_t j) const {
    return static_cast<double>(exact(r, j)) * a_scales_[static_cast<size_t>(source(r))] *
           b_scales_[static_cast<size_t>(group_of(r) * c_.n + j)];
  }

  void run(int threads, void* out, int32_t* sums) {
    const int before = num_threads();
    set_num_threads(threads);
    Int8GemmArgs args{};
    args.a = a_.data();
    args.a_scales = a_scales_.data();
    args.a_index = c_.gather ? index_.data() : nullptr;
    args.index_divisor = c_.divisor;
    args.b = packed_.data();
    args.b_scales = packed_scales_.data();
    args.b_offsets = packed_offsets_.data();
    args.bias = c_.bias ? bias_.data() : nullptr;
    args.offsets = offsets_.data();
    args.out = out;
    args.sums = sums;
    args.num_groups = groups_;
    args.num_rows = rows_;
    args.n = c_.n;
    args.k = c_.k;
    args.a_stride = stride_;
    args.swiglu = c_.swiglu;
    args.out_dtype = c_.out;
    int8_gemm(args, nullptr);
    set_num_threads(before);
  }

  Int8Case c_;
  int64_t groups_, stride_, used_ = 0, rows_ = 0, source_rows_ = 0;
  std::mt19937 random_{11};
  std::vector<int32_t> offsets_{0}, index_, packed_offsets_;
  std::vector<uint8_t> a_;
  std::vector<int8_t> b_;
  std::vector<float> a_scales_, b_scales_, bias_, packed_scales_;
  Aligned<int8_t> packed_;
};

void check_int8(const Int8Case& c) {
  Int8Problem problem(c);
  problem.expect_exact_sums(1);
  problem.expect_exact_sums(3);
  const std::vector<float> out = problem.output(1);
  problem.expect_right(out);
  EXPECT_EQ(out, problem.output(2)) << describe(c) << ": depends on the number of threads";
  EXPECT_EQ(out, problem.output(5)) << describe(c) << ": depends on the number of threads";
}

TEST(Int8Gemm, is_exact_for_odd_sizes_and_empty_groups) {
  const std::vector<std::vector<int32_t>> row_counts = {{3, 0, 7, 1, 6}, {17, 0, 0},   {0, 0, 17},
                                                        {0, 0},          {1, 1, 1, 1}, {29, 2, 0, 45, 15}};
  for (const auto& counts : row_counts)
    for (const auto& [n, k] :
         {std::pair<int64_t, int64_t>{5, 3}, {1, 1}, {33, 65}, {64, 32}, {31, 17}, {96, 160}})
      for (const DType out : {DType::f32, DType::bf16})
        check_int8({.counts = counts, .n = n, .k = k, .out = out});
}

TEST(Int8Gemm, covers_every_number_of_rows_in_a_tile) {
  for (int32_t rows = 1; rows <= 66; ++rows) check_int8({.counts = {rows}, .n = 40, .k = 21});
}

TEST(Int8Gemm, gathers_rows_and_leaves_unused_ones_alone) {
  for (const int64_t divisor : {1, 2, 3})
    for (const DType out : {DType::f32, DType::bf16})
      check_int8({.counts = {19, 0, 3, 40},
                  .n = 37,
                  .k = 41,
                  .gather = true,
                  .divisor = divisor,
                  .out = out,
                  .unused_rows = 9});
}

TEST(Int8Gemm, applies_bias_and_activation) {
  for (const DType out : {DType::f32, DType::bf16}) {
    check_int8({.counts = {5, 0, 33}, .n = 47, .k = 35, .out = out, .bias = true});
    for (const int64_t n : {2, 30, 32, 34, 96})
      check_int8({.counts = {5, 0, 33}, .n = n, .k = 35, .swiglu = true, .out = out});
  }
}

TEST(Int8Gemm, sums_longer_than_one_stretch_and_cuts_large_products) {
  check_int8({.counts = {3, 1}, .n = 35, .k = 9001});
  check_int8({.counts = {3}, .n = 33, .k = kInt8TileK});
  check_int8({.counts = {16}, .n = 33, .k = kInt8TileK + 1});
  check_int8({.counts = {700, 1, 130}, .n = 100, .k = 70, .gather = true, .divisor = 2});
}

TEST(Int8Gemm, of_no_columns_or_no_sums) {
  check_int8({.counts = {4, 2}, .n = 0, .k = 8});
  check_int8({.counts = {4, 2}, .n = 8, .k = 0});
}

// The largest sums there are: every product 127 x 127, of either sign, k as long as sums of 32 bits allow.
TEST(Int8Gemm, does_not_saturate_or_overflow) {
  for (const int8_t weight : {int8_t{127}, int8_t{-127}}) {
    const int64_t k = kernels::kInt8MaxK, stride = int8_padded_k(k);
    std::vector<uint8_t> a(static_cast<size_t>(2 * stride), 255);
    for (int64_t i = 0; i < k; ++i) a[static_cast<size_t>(stride + i)] = 1;
    const std::vector<int8_t> b(static_cast<size_t>(k), weight);
    Aligned<int8_t> packed(int8_packed_bytes(1, 1, k));
    std::vector<float> scales(32);
    std::vector<int32_t> offsets(32), sums(2);
    const float one = 1;
    int8_pack(
        {b.data(), &one, packed.data(), scales.data(), offsets.data(), 1, 1, k, true, Int8Columns::plain},
        nullptr);
    Int8GemmArgs args{};
    args.a = a.data();
    args.b = packed.data();
    args.b_scales = scales.data();
    args.b_offsets = offsets.data();
    args.sums = sums.data();
    args.index_divisor = args.num_groups = args.n = 1;
    args.num_rows = 2;
    args.k = k;
    args.a_stride = stride;
    int8_gemm(args, nullptr);
    EXPECT_EQ(sums[0], 127 * weight * static_cast<int32_t>(k));
    EXPECT_EQ(sums[1], -127 * weight * static_cast<int32_t>(k));
  }
}

// Every table of tiles that this processor can run, and Highway's for every instruction set.
TEST(Int8Gemm, is_exact_with_every_instruction_set) {
  const auto check_all = [](const Int8TileTable& table) {
    SCOPED_TRACE(table.name);
    testing::Test::RecordProperty(table.name, 1);
    set_int8_tiles(&table);
    for (int32_t rows = 1; rows <= table.rows + 1; ++rows) check_int8({.counts = {rows}, .n = 70, .k = 37});
    // Whole words of every tile's step along k, and what is left over.
    for (const int64_t k : {16, 64, 80, 128, 144, 176, 192})
      check_int8({.counts = {3, 16, 40}, .n = 33, .k = k});
    check_int8({.counts = {19, 0, 3, 40}, .n = 37, .k = 41, .gather = true, .divisor = 2, .unused_rows = 9});
    check_int8({.counts = {5, 0, 33}, .n = 66, .k = 4500, .swiglu = true});
    set_int8_tiles(nullptr);
  };
  if (const Int8TileTable* const table = amx_int8_tiles()) check_all(*table);
  if (const Int8TileTable* const table = avx512_vnni_tiles()) check_all(*table);
  if (const Int8TileTable* const table = avx_vnni_tiles()) check_all(*table);
  const int64_t supported = hwy::SupportedTargets();
  std::string before;
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().DeInit();
    const Int8TileTable& table = portable_int8_tiles();
    if (table.name != before) check_all(table);
    before = table.name;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

// ---- rows

template <class T>
void check_rows(int64_t width, const float* static_scale) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr int64_t kRows = 9, kSlots = 12;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const int64_t x_stride = width + 3, stride = int8_padded_k(width) + 16;
  std::vector<T> x(static_cast<size_t>(kRows * x_stride));
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      float value = normal(random) * std::ldexp(1.0f, static_cast<int>(10 * r) - 40);
      if (r == 4) value = 0;
      if (r == 5) value = -2.5f;
      if (r == 6 && i == width / 2) value = kInfinity;
      if (r == 7 && i == width - 1) value = std::nanf("");
      from_float(value, x[static_cast<size_t>(r * x_stride + i)]);
    }
  std::vector<int32_t> index;
  for (int32_t s = 0; s < kSlots; ++s) index.push_back(s == 3 ? -1 : (7 * s) % (2 * kRows));
  std::vector<uint8_t> codes(static_cast<size_t>(kSlots * stride), 3);
  std::vector<float> scales(kSlots);
  Int8RowsArgs args{};
  args.x = x.data();
  args.index = index.data();
  args.index_divisor = 2;
  args.codes = codes.data();
  args.scales = scales.data();
  args.static_scale = static_scale;
  args.num_rows = kSlots;
  args.width = width;
  args.x_stride = x_stride;
  args.codes_stride = stride;
  args.dtype = sizeof(T) == 4 ? DType::f32 : DType::bf16;
  int8_rows(args, nullptr);
  for (int64_t s = 0; s < kSlots; ++s) {
    const int32_t slot = index[static_cast<size_t>(s)];
    const T* row = x.data() + slot / 2 * x_stride;
    float range = 0;
    for (int64_t i = 0; slot >= 0 && i < width; ++i) {
      const float value = std::abs(to_float(row[i]));
      range = std::isfinite(value) ? std::max(range, value) : kInfinity;
      if (range == kInfinity) break;
    }
    float scale = scale_of_range(range);
    if (static_scale != nullptr && slot >= 0 && std::isfinite(range)) scale = *static_scale;
    const float got = scales[static_cast<size_t>(s)];
    if (std::isnan(scale)) {
      EXPECT_TRUE(std::isnan(got)) << "row " << s;
    } else {
      EXPECT_EQ(got, scale) << "row " << s;
    }
    for (int64_t i = 0; i < stride; ++i) {
      const int32_t want = i < width && slot >= 0 ? code_of(to_float(row[i]), inverse_of_scale(scale)) : 0;
      ASSERT_EQ(codes[static_cast<size_t>(s * stride + i)], 128 + want)
          << "width " << width << ", row " << s << ", column " << i;
    }
  }
}

TEST(Int8Rows, have_the_codes_of_the_format_with_every_instruction_set) {
  const float narrow = 0.01f;
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().DeInit();
    for (const int64_t width : {1, 7, 16, 33, 64, 131})
      for (const float* scale : {static_cast<const float*>(nullptr), &narrow}) {
        check_rows<float>(width, scale);
        check_rows<Bf16>(width, scale);
      }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

// Activations in two digits: as good as fp32 next to the rounding of the weights.
TEST(Int8Gemm, of_two_digits_multiplies_what_one_digit_leaves_over) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> code(-127, 127);
  for (const int64_t rows : {1, 3, 20})
    for (const bool swiglu : {false, true}) {
      const int64_t n = 38, k = 75, stride = int8_padded_k(k), width = swiglu ? n / 2 : n;
      std::vector<float> x, out(static_cast<size_t>(rows * width));
      for (int64_t i = 0; i < rows * k; ++i) x.push_back(normal(random));
      std::vector<uint8_t> a(static_cast<size_t>(2 * rows * stride));
      std::vector<float> a_scales(static_cast<size_t>(2 * rows)), scales(64);
      Int8RowsArgs quantise{};
      quantise.x = x.data();
      quantise.index_divisor = 1;
      quantise.codes = a.data();
      quantise.scales = a_scales.data();
      quantise.num_rows = rows;
      quantise.width = quantise.x_stride = k;
      quantise.codes_stride = stride;
      quantise.digits = 2;
      int8_rows(quantise, nullptr);
      std::vector<int8_t> b;
      for (int64_t i = 0; i < n * k; ++i) b.push_back(static_cast<int8_t>(code(random)));
      Aligned<int8_t> packed(int8_packed_bytes(1, n, k));
      std::vector<int32_t> offsets(64);
      const float scale = 1.0f / 512;
      int8_pack({b.data(), &scale, packed.data(), scales.data(), offsets.data(), 1, n, k, true,
                 swiglu ? Int8Columns::gate_up : Int8Columns::plain},
                nullptr);
      Int8GemmArgs args{};
      args.a = a.data();
      args.a_scales = a_scales.data();
      args.index_divisor = args.num_groups = 1;
      args.b = packed.data();
      args.b_scales = scales.data();
      args.b_offsets = offsets.data();
      args.out = out.data();
      args.num_rows = rows;
      args.n = n;
      args.k = k;
      args.a_stride = stride;
      args.swiglu = swiglu;
      args.digits = 2;
      int8_gemm(args, nullptr);
      for (int64_t r = 0; r < rows; ++r) {
        float range = 0;
        for (int64_t i = 0; i < k; ++i) range = std::max(range, std::abs(x[static_cast<size_t>(r * k + i)]));
        const auto product = [&](int64_t j) {
          double sum = 0;
          for (int64_t i = 0; i < k; ++i)
            sum += static_cast<double>(x[static_cast<size_t>(r * k + i)]) * b[static_cast<size_t>(j * k + i)];
          return sum * scale;
        };
        for (int64_t j = 0; j < width; ++j) {
          const double gate = swiglu ? product(2 * j) : 0;
          const double want = swiglu ? gate / (1 + std::exp(-gate)) * product(2 * j + 1) : product(j);
          // k values, each within half a step of the second digit, times the largest weight; SwiGLU may
          // multiply that by its other factor.
          const double step = range / 127 / 254 / 2 * 127 * scale * std::sqrt(static_cast<double>(k)) * 2;
          ASSERT_NEAR(out[static_cast<size_t>(r * width + j)], want, step * (swiglu ? 12 : 1))
              << rows << " rows, at (" << r << ", " << j << ")" << (swiglu ? " swiglu" : "");
        }
      }
    }
}

}  // namespace
}  // namespace moebius::kernels::cpu
