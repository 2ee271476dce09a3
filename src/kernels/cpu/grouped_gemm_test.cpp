#include "kernels/cpu/grouped_gemm.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "kernels/cpu/gemm_amx.h"
#include "kernels/cpu/gemm_block.h"

namespace moebius::kernels::cpu {
namespace {

using Kind = GroupedGemmKind;

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

float from_bf16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// A tensor of either type, exactly as large as it says, so that a read past the end is seen by the
// sanitizers.
struct Values {
  DType dtype;
  std::vector<float> f;
  std::vector<uint16_t> h;

  Values(DType type, int64_t count) : dtype(type) {
    if (type == DType::f32) {
      f.resize(static_cast<size_t>(count));
    } else {
      h.resize(static_cast<size_t>(count));
    }
  }
  void* data() { return dtype == DType::f32 ? static_cast<void*>(f.data()) : static_cast<void*>(h.data()); }
  double at(int64_t i) const {
    return dtype == DType::f32 ? f[static_cast<size_t>(i)] : from_bf16(h[static_cast<size_t>(i)]);
  }
  void set(int64_t i, float value) {
    if (dtype == DType::f32) {
      f[static_cast<size_t>(i)] = value;
    } else {
      h[static_cast<size_t>(i)] = to_bf16(value);
    }
  }
  int64_t size() const { return static_cast<int64_t>(dtype == DType::f32 ? f.size() : h.size()); }
  bool operator==(const Values& other) const { return f == other.f && h == other.h; }
};

struct Case {
  Kind kind;
  std::vector<int32_t> counts;  // rows per group
  int64_t n, k;
  DType dtype = DType::f32, out_dtype = DType::f32;
  bool gather_a = false, gather_b = false;
  int64_t divisor = 1;
  bool accumulate = false;
  int64_t unused_rows = 0;
};

std::string describe(const Case& c) {
  std::string text = "kind " + std::to_string(static_cast<int>(c.kind)) + " rows";
  for (int32_t count : c.counts) text += " " + std::to_string(count);
  return text + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) +
         (c.dtype == DType::f32 ? " f32" : " bf16") + (c.out_dtype == DType::f32 ? ">f32" : ">bf16") +
         (c.gather_a ? " gather_a" : "") + (c.gather_b ? " gather_b" : "") + " / " +
         std::to_string(c.divisor) + (c.accumulate ? " accumulate" : "");
}

class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c), offsets_{0}, a_(c.dtype, 0), b_(c.dtype, 0), initial_(c.out_dtype, 0) {
    for (int32_t count : c.counts) offsets_.push_back(offsets_.back() + count);
    used_ = offsets_.back();
    rows_ = used_ + c.unused_rows;
    const int64_t groups = static_cast<int64_t>(c.counts.size());
    const bool wgrad = c.kind == Kind::weight_grad;
    // A gathered tensor holds one row per `divisor` slots, and a few that nobody refers to.
    const int64_t source_rows = rows_ / c.divisor + 3;
    a_width_ = c.kind == Kind::forward ? c.k : c.n;
    out_width_ = c.kind == Kind::forward ? c.n : c.k;
    a_ = random(c.dtype, (c.gather_a ? source_rows : rows_) * a_width_);
    b_ = random(c.dtype, wgrad ? (c.gather_b ? source_rows : rows_) * c.k : groups * c.n * c.k);
    initial_ = random(c.out_dtype, (wgrad ? groups * c.n : rows_) * out_width_);
    std::uniform_int_distribution<int32_t> pick(0, static_cast<int32_t>(source_rows * c.divisor - 1));
    for (int64_t r = 0; r < rows_; ++r) index_.push_back(r < used_ ? pick(random_) : -1);
  }

  Values run(int threads) {
    const int before = num_threads();
    set_num_threads(threads);
    Values out = initial_;
    GroupedGemmArgs args{};
    args.kind = c_.kind;
    args.a = a_.data();
    args.b = b_.data();
    args.out = out.data();
    args.offsets = offsets_.data();
    args.num_groups = static_cast<int64_t>(c_.counts.size());
    args.num_rows = rows_;
    args.n = c_.n;
    args.k = c_.k;
    args.a_index = c_.gather_a ? index_.data() : nullptr;
    args.b_index = c_.gather_b ? index_.data() : nullptr;
    args.index_divisor = c_.divisor;
    args.accumulate = c_.accumulate;
    args.dtype = c_.dtype;
    args.out_dtype = c_.out_dtype;
    grouped_gemm(args, nullptr);
    set_num_threads(before);
    return out;
  }

  // Largest error over elements, relative to the sum of absolute products (the scale of fp32 rounding).
  void expect_right(const Values& out) const {
    const double unit = std::ldexp(1.0, -23), half = c_.out_dtype == DType::bf16 ? std::ldexp(1.0, -8) : 0;
    const bool wgrad = c_.kind == Kind::weight_grad;
    for (int64_t i = 0; i < out.size(); ++i) {
      const int64_t row = i / out_width_, col = i % out_width_;
      if (!wgrad && row >= used_) {
        ASSERT_EQ(out.at(i), initial_.at(i)) << describe(c_) << ": unused row " << row << " was written";
        continue;
      }
      double sum = c_.accumulate ? initial_.at(i) : 0, scale = std::abs(sum);
      const auto add = [&](double x, double y) {
        sum += x * y;
        scale += std::abs(x * y);
      };
      if (wgrad) {
        const int64_t g = row / c_.n;
        for (int64_t r = offsets_[g]; r < offsets_[g + 1]; ++r)
          add(a_.at(source(c_.gather_a, r) * c_.n + row % c_.n), b_.at(source(c_.gather_b, r) * c_.k + col));
      } else {
        int64_t g = 0;
        while (row >= offsets_[g + 1]) ++g;
        for (int64_t j = 0; j < a_width_; ++j)
          add(a_.at(source(c_.gather_a, row) * a_width_ + j), c_.kind == Kind::forward
                                                                  ? b_.at((g * c_.n + col) * c_.k + j)
                                                                  : b_.at((g * c_.n + j) * c_.k + col));
      }
      ASSERT_NEAR(out.at(i), sum, 16 * unit * scale + half * std::abs(sum))
          << describe(c_) << ": at (" << row << ", " << col << ")";
    }
  }

 private:
  int64_t source(bool gather, int64_t r) const {
    return gather ? index_[static_cast<size_t>(r)] / c_.divisor : r;
  }
  Values random(DType dtype, int64_t count) {
    Values values(dtype, count);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < count; ++i) values.set(i, uniform(random_));
    return values;
  }

  Case c_;
  std::mt19937 random_{7};
  std::vector<int32_t> offsets_, index_;
  int64_t used_ = 0, rows_ = 0, a_width_ = 0, out_width_ = 0;
  Values a_, b_, initial_;
};

void check(const Case& c) {
  Problem problem(c);
  const Values out = problem.run(1);
  problem.expect_right(out);
  EXPECT_TRUE(out == problem.run(2)) << describe(c) << ": depends on the number of threads";
  EXPECT_TRUE(out == problem.run(5)) << describe(c) << ": depends on the number of threads";
}

constexpr struct {
  DType in, out;
} kTypes[] = {{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}};
constexpr Kind kKinds[] = {Kind::forward, Kind::input_grad, Kind::weight_grad};

TEST(GroupedGemm, matches_a_double_reference_for_odd_sizes_and_empty_groups) {
  const std::vector<std::vector<int32_t>> row_counts = {{3, 0, 7, 1, 6},  {17, 0, 0, 0, 0},
                                                        {0, 0, 0, 0, 17}, {0, 0, 0, 0, 0},
                                                        {1, 1, 1, 1, 1},  {29, 2, 0, 45, 15}};
  for (Kind kind : kKinds)
    for (const auto& counts : row_counts)
      for (const auto& type : kTypes)
        for (const auto& [n, k] : {std::pair<int64_t, int64_t>{5, 3}, {1, 1}, {33, 65}, {64, 32}, {31, 17}})
          check({kind, counts, n, k, type.in, type.out});
}

TEST(GroupedGemm, gathers_rows_through_the_index_and_leaves_unused_rows_alone) {
  for (Kind kind : kKinds)
    for (const auto& type : kTypes)
      for (const int64_t divisor : {1, 2, 3})
        for (const bool gather_b : {false, true})
          check({kind,
                 {19, 0, 3, 40},
                 37,
                 41,
                 type.in,
                 type.out,
                 true,
                 gather_b && kind == Kind::weight_grad,
                 divisor,
                 false,
                 9});
  check({Kind::weight_grad, {19, 0, 3, 40}, 37, 41, DType::bf16, DType::bf16, false, true, 2, false, 9});
}

TEST(GroupedGemm, accumulates_into_what_is_there) {
  for (Kind kind : kKinds)
    for (const auto& type : kTypes)
      check({kind, {5, 0, 33}, 47, 35, type.in, type.out, true, false, 2, true, 2});
}

TEST(GroupedGemm, sums_longer_than_one_stretch_of_registers) {
  for (const auto& type : kTypes)
    for (const bool accumulate : {false, true}) {
      check({Kind::forward, {20, 2}, 35, 2301, type.in, type.out, false, false, 1, accumulate});
      check({Kind::input_grad, {20, 2}, 2301, 35, type.in, type.out, false, false, 1, accumulate});
      check({Kind::weight_grad, {2301, 0, 513}, 19, 35, type.in, type.out, true, false, 2, accumulate});
    }
}

TEST(GroupedGemm, covers_every_number_of_rows_in_a_tile) {
  for (int32_t rows = 1; rows <= 30; ++rows)
    for (const auto& type : kTypes) {
      check({Kind::forward, {rows}, 40, 21, type.in, type.out});
      check({Kind::input_grad, {rows}, 21, 40, type.in, type.out});
      check({Kind::weight_grad, {23}, rows, 40, type.in, type.out});
    }
}

TEST(GroupedGemm, cuts_large_products_into_blocks_of_rows_and_columns) {
  for (const auto& type : kTypes) {
    check({Kind::forward, {700, 1, 130}, 300, 65, type.in, type.out, true, false, 2});
    check({Kind::input_grad, {700, 1, 130}, 65, 300, type.in, type.out});
    check({Kind::weight_grad, {70, 1, 13}, 700, 300, type.in, type.out, false, true, 2});
  }
}

// Runs the same cases with every instruction set that this processor has and that the kernels are built for.
TEST(GroupedGemm, is_right_with_every_instruction_set) {
  const int64_t supported = hwy::SupportedTargets();
  std::string before;
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().DeInit();
    const std::string name = gemm_geometry(DType::f32).name;
    if (name == before) continue;
    before = name;
    SCOPED_TRACE(name);
    RecordProperty(name, 1);
    for (Kind kind : kKinds)
      for (const auto& type : kTypes) {
        check({kind, {19, 0, 3, 40}, 37, 41, type.in, type.out, true, false, 2, false, 9});
        check({kind, {5, 0, 33}, 65, 530, type.in, type.out, false, false, 1, true});
      }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

// The packing for AMX tiles, with the tiles in plain C++; the hardware's are used by all tests where there
// are any, so that the AVX-512 tiles are tested there by turning AMX off.
TEST(GroupedGemm, is_right_with_and_without_matrix_tiles) {
  for (const AmxMode mode : {AmxMode::portable, AmxMode::off}) {
    set_amx_mode(mode);
    const std::string name = gemm_geometry(DType::bf16).name;
    SCOPED_TRACE(name);
    EXPECT_EQ(name == "AMX-BF16", mode == AmxMode::portable);
    for (Kind kind : kKinds)
      for (const DType out : {DType::bf16, DType::f32}) {
        check({kind, {19, 0, 3, 40}, 37, 41, DType::bf16, out, true, false, 2, false, 9});
        check({kind, {5, 0, 33}, 65, 530, DType::bf16, out, false, false, 1, true});
        check({kind, {64, 16, 17, 0, 31, 33}, 16, 33, DType::bf16, out});
      }
    for (const DType out : {DType::bf16, DType::f32}) {
      check({Kind::forward, {40, 5}, 35, 1301, DType::bf16, out, false, false, 1, true});
      check({Kind::weight_grad, {1301, 5}, 19, 35, DType::bf16, out, true, false, 2, true});
    }
  }
  set_amx_mode(AmxMode::automatic);
}

TEST(GroupedGemm, is_a_dense_product_without_offsets) {
  std::vector<float> a(6 * 4), b(5 * 4), out(6 * 5);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 7);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 5);
  GroupedGemmArgs args{};
  args.kind = Kind::forward;
  args.a = a.data();
  args.b = b.data();
  args.out = out.data();
  args.num_groups = 1;
  args.num_rows = 6;
  args.n = 5;
  args.k = 4;
  args.index_divisor = 1;
  grouped_gemm(args, nullptr);
  for (int r = 0; r < 6; ++r)
    for (int c = 0; c < 5; ++c) {
      float sum = 0;
      for (int j = 0; j < 4; ++j) sum += a[r * 4 + j] * b[c * 4 + j];
      ASSERT_EQ(out[r * 5 + c], sum) << "at (" << r << ", " << c << ")";
    }
}

TEST(GroupedGemm, keeps_nan_and_infinity) {
  for (const DType out_dtype : {DType::f32, DType::bf16}) {
    std::vector<uint16_t> a(40 * 8, to_bf16(1)), b(8 * 8, to_bf16(1)), half(40 * 8);
    std::vector<float> full(40 * 8);
    a[0] = 0x7FC0;  // NaN
    a[8] = 0x7F80;  // infinity
    GroupedGemmArgs args{};
    args.kind = Kind::forward;
    args.a = a.data();
    args.b = b.data();
    args.out = out_dtype == DType::f32 ? static_cast<void*>(full.data()) : half.data();
    args.num_groups = 1;
    args.num_rows = 40;
    args.n = args.k = 8;
    args.index_divisor = 1;
    args.dtype = DType::bf16;
    args.out_dtype = out_dtype;
    grouped_gemm(args, nullptr);
    const auto at = [&](size_t i) { return out_dtype == DType::f32 ? full[i] : from_bf16(half[i]); };
    EXPECT_TRUE(std::isnan(at(3)));
    EXPECT_TRUE(std::isinf(at(8 + 3)));
    EXPECT_EQ(at(16 + 3), 8.0f);
  }
}

}  // namespace
}  // namespace moebius::kernels::cpu
