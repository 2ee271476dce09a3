// Every variant of the integer product on ragged groups: the sums bit for bit, the scaled results against the
// same arithmetic in double precision.
#include "kernels/cuda/int8_gemm.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

#include "kernels/cuda/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

struct Int8Form {
  std::vector<int32_t> sizes;  // rows of groups
  int64_t n, k;
  bool gather = false, swiglu = false,
       bias = false;  // gather: codes are copies, scales are those of the sources
  int64_t digits = 1;
  int32_t unused = 0;  // rows in no group
};

std::string describe(const Int8Form& f) {
  std::string text = std::to_string(f.sizes.size()) + " groups (" + std::to_string(f.sizes.front()) +
                     " ..), " + std::to_string(f.n) + " x " + std::to_string(f.k);
  return text + (f.gather ? ", copied" : "") + (f.swiglu ? ", swiglu" : "") + (f.bias ? ", bias" : "") +
         (f.digits == 2 ? ", two digits" : "");
}

double rounded_to_bf16(double x) {
  const float single = static_cast<float>(x);
  uint32_t bits = 0;
  std::memcpy(&bits, &single, sizeof(bits));
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  float result = 0.0f;
  std::memcpy(&result, &bits, sizeof(result));
  return static_cast<double>(result);
}

class Int8Problem {
 public:
  explicit Int8Problem(const Int8Form& form) : f_(form), groups_(static_cast<int64_t>(form.sizes.size())) {
    for (const int32_t size : form.sizes) offsets_.push_back(offsets_.back() + size);
    used_ = offsets_.back();
    rows_ = used_ + form.unused;
    sources_ = form.gather ? rows_ / kDivisor + 3 : rows_;
    stride_ = int8_padded_k(form.k);
    padded_n_ = int8_padded_n(form.n, Int8Layout::rows);
    std::uniform_int_distribution<int> code(-127, 127);
    std::uniform_real_distribution<float> scale(0.5f, 2.0f);
    a_.assign(static_cast<size_t>(form.digits * sources_ * stride_), 0);
    for (int64_t r = 0; r < form.digits * sources_; ++r)
      for (int64_t i = 0; i < form.k; ++i) a_[at(r, stride_, i)] = static_cast<int8_t>(code(random_));
    b_.assign(static_cast<size_t>(groups_ * padded_n_ * stride_), 0);
    b_scales_.assign(static_cast<size_t>(groups_ * padded_n_), 0.0f);
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t j = 0; j < form.n; ++j) {
        for (int64_t i = 0; i < form.k; ++i)
          b_[at(g * padded_n_ + j, stride_, i)] = static_cast<int8_t>(code(random_));
        b_scales_[at(g, padded_n_, j)] = scale(random_) / 4000.0f / std::sqrt(static_cast<float>(form.k));
      }
    for (int64_t r = 0; r < form.digits * sources_; ++r)
      a_scales_.push_back(scale(random_) * (r < sources_ ? 1.0f : 0.25f));
    for (int64_t i = 0; i < groups_ * form.n; ++i) bias_.push_back(scale(random_));
    for (int64_t r = 0; r < rows_; ++r)
      index_.push_back(static_cast<int32_t>((r * 7919 + 13) % (sources_ * kDivisor)));
  }

  // Every variant, sums or values.
  void check() {
    std::vector<int8_t> rows = a_;
    if (f_.gather) {
      rows.clear();
      for (int64_t digit = 0; digit < f_.digits; ++digit)
        for (int64_t r = 0; r < rows_; ++r) {
          const auto from = a_.begin() + (digit * sources_ + source(r)) * stride_;
          rows.insert(rows.end(), from, from + stride_);
        }
    }
    const Integers<int8_t> a(rows), b(b_);
    const Integers<float> a_scales(a_scales_), b_scales(b_scales_), bias(bias_);
    const Integers<int32_t> offsets(offsets_), index(index_);
    Int8GemmArgs args{};
    args.a = reinterpret_cast<const uint8_t*>(a.data());
    args.a_scales = a_scales.data();
    args.scale_index = f_.gather ? index.data() : nullptr;
    args.index_divisor = f_.gather ? kDivisor : 1;
    args.b = b.data();
    args.b_scales = b_scales.data();
    args.bias = f_.bias ? bias.data() : nullptr;
    args.offsets = groups_ == 1 && f_.unused == 0 ? nullptr : offsets.data();
    args.num_groups = groups_;
    args.num_rows = rows_;
    args.n = f_.n;
    args.k = f_.k;
    args.a_stride = stride_;
    args.swiglu = f_.swiglu;
    args.digits = f_.digits;
    args.num_a_rows = sources_;
    make_exact();
    const std::vector<const Int8Variant*> variants = int8_variants(args);
    ASSERT_FALSE(variants.empty());
    for (const Int8Variant* variant : variants) {
      SCOPED_TRACE(name_of(*variant));
      // To go on without kernels that hang: those whose name has this.
      const char* skipped = std::getenv("MOEBIUS_SKIP_VARIANTS");
      if (skipped != nullptr && std::strstr(name_of(*variant), skipped) != nullptr) continue;
      if (f_.digits == 1 && !f_.swiglu && !f_.bias) check_sums(args, *variant);
      for (const DType dtype : {DType::bf16, DType::f32}) check_values(args, *variant, dtype);
      if (testing::Test::HasFailure()) return;
    }
  }

 private:
  static constexpr int64_t kDivisor = 2;

  static size_t at(int64_t row, int64_t width, int64_t column) {
    return static_cast<size_t>(row * width + column);
  }
  int64_t source(int64_t r) const { return f_.gather ? index_[static_cast<size_t>(r)] / kDivisor : r; }

  // exact_[digit]: (used rows, n).
  void make_exact() {
    for (int64_t digit = 0; digit < f_.digits; ++digit) {
      exact_[digit].assign(static_cast<size_t>(used_ * f_.n), 0);
      for (int64_t g = 0; g < groups_; ++g)
        for (int64_t r = offsets_[static_cast<size_t>(g)]; r < offsets_[static_cast<size_t>(g) + 1]; ++r)
          for (int64_t j = 0; j < f_.n; ++j) {
            const int8_t* x = a_.data() + at(digit * sources_ + source(r), stride_, 0);
            const int8_t* w = b_.data() + at(g * padded_n_ + j, stride_, 0);
            int32_t sum = 0;
            for (int64_t i = 0; i < f_.k; ++i) sum += int32_t{x[i]} * int32_t{w[i]};
            exact_[digit][at(r, f_.n, j)] = sum;
          }
    }
  }

  void check_sums(Int8GemmArgs args, const Int8Variant& variant) {
    const Integers<int32_t> out(std::vector<int32_t>(static_cast<size_t>(rows_ * f_.n), 77));
    args.sums = out.data();
    run_int8_variant(variant, args, nullptr);
    const std::vector<int32_t> sums = out.host();
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t j = 0; j < f_.n; ++j)
        ASSERT_EQ(sums[at(r, f_.n, j)], r < used_ ? exact_[0][at(r, f_.n, j)] : 77)
            << "sum of row " << r << ", column " << j << " of " << describe(f_);
  }

  double value(int64_t g, int64_t r, int64_t j) const {
    double v = 0.0;
    for (int64_t digit = 0; digit < f_.digits; ++digit)
      v += static_cast<double>(exact_[digit][at(r, f_.n, j)]) *
           static_cast<double>(a_scales_[static_cast<size_t>(digit * sources_ + source(r))]);
    v *= static_cast<double>(b_scales_[at(g, padded_n_, j)]);
    return f_.bias ? v + static_cast<double>(bias_[at(g, f_.n, j)]) : v;
  }

  void check_values(Int8GemmArgs args, const Int8Variant& variant, DType dtype) {
    const int64_t width = f_.swiglu ? f_.n / 2 : f_.n;
    const bool rounds = f_.swiglu && dtype == DType::bf16;
    const Values out(dtype, rows_ * width), gate_up(DType::bf16, rows_ * f_.n);
    args.out = out.data();
    args.out_dtype = dtype;
    args.gate_up = rounds ? gate_up.data() : nullptr;
    run_int8_variant(variant, args, nullptr);
    std::vector<double> expected, pairs;
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t r = offsets_[static_cast<size_t>(g)]; r < offsets_[static_cast<size_t>(g) + 1]; ++r)
        for (int64_t j = 0; j < f_.n; ++j) {
          const double x = value(g, r, j);
          pairs.push_back(rounds ? rounded_to_bf16(x) : x);
          if (!f_.swiglu) {
            expected.push_back(x);
          } else if (j % 2 == 1) {
            const double gate = pairs[pairs.size() - 2], up = pairs.back();
            expected.push_back(gate / (1.0 + std::exp(-gate)) * up);
          }
        }
    const std::string what = std::string(dtype == DType::f32 ? "fp32 of " : "bf16 of ") + describe(f_);
    std::vector<double> got = out.host();
    for (size_t i = static_cast<size_t>(used_ * width); i < got.size(); ++i)
      ASSERT_TRUE(std::isnan(got[i])) << what << ": an unused row was written";
    got.resize(static_cast<size_t>(used_ * width));
    expect_close(what, got, expected, dtype);
    if (!rounds) return;
    std::vector<double> kept = gate_up.host();
    kept.resize(static_cast<size_t>(used_ * f_.n));
    expect_close("gate and up, " + what, kept, pairs, DType::bf16);
  }

  Int8Form f_;
  int64_t groups_, used_ = 0, rows_ = 0, sources_ = 0, stride_ = 0, padded_n_ = 0;
  std::mt19937 random_{5};
  std::vector<int32_t> offsets_{0}, index_;
  std::vector<int8_t> a_, b_;
  std::vector<float> a_scales_, b_scales_, bias_;
  std::vector<int32_t> exact_[2];
};

bool can_run() {
  return has_device() && int8_serves();
}
#define MOEBIUS_NEEDS_HOPPER() \
  if (!can_run()) GTEST_SKIP() << "no Hopper GPU"

void check_forms(const std::vector<int32_t>& sizes, int64_t n, int64_t k, int32_t unused) {
  for (const bool gather : {false, true})
    for (const int64_t digits : {1, 2}) {
      Int8Problem({sizes, n, k, gather, false, false, digits, unused}).check();
      if (n % 2 == 0) Int8Problem({sizes, n, k, gather, true, false, digits, unused}).check();
      if (testing::Test::HasFailure()) return;
    }
  Int8Problem({sizes, n, k, false, false, true, 1, unused}).check();
}

// The smallest first, so that a broken kernel shows in the first seconds.
TEST(CudaInt8Gemm, one_row) {
  MOEBIUS_NEEDS_HOPPER();
  check_forms({1}, 64, 128, 0);
  check_forms({1}, 40, 16, 0);
}

TEST(CudaInt8Gemm, one_group) {
  MOEBIUS_NEEDS_HOPPER();
  check_forms({130}, 256, 256, 0);
  check_forms({64}, 208, 72, 0);
  check_forms({300}, 33, 2000, 0);
}

TEST(CudaInt8Gemm, ragged_groups) {
  MOEBIUS_NEEDS_HOPPER();
  const std::vector<std::vector<int32_t>> all = {
      {0, 1, 0, 64, 65, 0}, {127, 128, 129, 256, 3}, {300, 0, 17, 500, 64, 1, 1, 200, 128, 90}};
  for (const auto& sizes : all)
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{256, 128}, {208, 80}, {518, 133}}) {
      check_forms(sizes, n, k, n == 208 ? 70 : 0);
      if (testing::Test::HasFailure()) return;
    }
}

// More tiles than blocks, and more stages than the ring has.
TEST(CudaInt8Gemm, blocks_take_many_tiles) {
  MOEBIUS_NEEDS_HOPPER();
  std::vector<int32_t> sizes;
  for (int32_t g = 0; g < 90; ++g) sizes.push_back(g % 11 == 3 ? 0 : g * 37 % 70);
  sizes.push_back(300);
  Int8Problem({sizes, 400, 48}).check();
  Int8Problem({sizes, 400, 48, true, true}).check();
  Int8Problem({sizes, 400, 48, false, true, false, 2}).check();
  Int8Problem({{180, 12, 129}, 400, 2560}).check();
  Int8Problem({{180, 12, 129}, 400, 2560, true}).check();
  Int8Problem({{1100}, 3200, 128}).check();
}

// Few rows: each block begins its sums elsewhere, and more stages follow than the ring has.
TEST(CudaInt8Gemm, few_rows_have_long_sums) {
  MOEBIUS_NEEDS_HOPPER();
  for (const int32_t rows : {1, 16, 64}) {
    Int8Problem({{rows}, 520, 2600}).check();
    Int8Problem({{rows, 0, rows}, 136, 3000, true}).check();
    if (testing::Test::HasFailure()) return;
  }
}

// A product may begin while its rows are still rounded, and the next rounding before the product has ended:
// what is queued without a pause gives the bits of what waits for each kernel.
TEST(CudaInt8Gemm, products_wait_for_the_rows_that_they_read) {
  MOEBIUS_NEEDS_HOPPER();
  constexpr int64_t kRounds = 10, kN = 512, kK = 2048;
  for (const int64_t rows : {1, 64, 300}) {
    const Values x = Values::normal(DType::bf16, kRounds * rows * kK, 3),
                 w = Values::normal(DType::bf16, kN * kK, 4);
    const Integers<uint8_t> codes(rows * kK), w_codes(kN * kK);
    const Values scales(DType::f32, rows), w_scales(DType::f32, kN);
    const auto rounded = [](const void* from, const Integers<uint8_t>& to, const Values& to_scales,
                            int64_t count) {
      Int8RowsArgs args{};
      args.x = from;
      args.index_divisor = 1;
      args.codes = to.data();
      args.scales = to_scales.floats();
      args.num_rows = count;
      args.width = args.x_stride = args.codes_stride = kK;
      args.dtype = DType::bf16;
      return args;
    };
    int8_rows(rounded(w.data(), w_codes, w_scales, kN), nullptr);
    Int8GemmArgs product{};
    product.a = codes.data();
    product.a_scales = scales.floats();
    product.index_divisor = 1;
    product.b = reinterpret_cast<const int8_t*>(w_codes.data());
    product.b_scales = w_scales.floats();
    product.num_groups = 1;
    product.num_rows = product.num_a_rows = rows;
    product.n = kN;
    product.k = product.a_stride = kK;
    product.out_dtype = DType::bf16;
    for (const Int8Variant* variant : int8_variants(product)) {
      SCOPED_TRACE(name_of(*variant));
      const auto all_rounds = [&](bool waits) {
        const Values out(DType::bf16, kRounds * rows * kN);
        for (int64_t round = 0; round < kRounds; ++round) {
          Int8RowsArgs args =
              rounded(static_cast<const char*>(x.data()) + round * rows * kK * 2, codes, scales, rows);
          args.product_follows = !waits;
          int8_rows(args, nullptr);
          if (waits) MOEBIUS_CUDA_CHECK(cudaDeviceSynchronize());
          product.out = static_cast<char*>(out.data()) + round * rows * kN * 2;
          run_int8_variant(*variant, product, nullptr);
          if (waits) MOEBIUS_CUDA_CHECK(cudaDeviceSynchronize());
        }
        return out.host();
      };
      EXPECT_EQ(all_rounds(false), all_rounds(true)) << rows << " rows";
    }
  }
}

}  // namespace
}  // namespace moebius::kernels::cuda
