// Every variant of the grouped product against double precision, on ragged groups.
#include "kernels/cuda/grouped_gemm.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

struct Groups {
  std::vector<int32_t> offsets;
  int64_t rows;  // of the buffers; the last ones may belong to no group
  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

Groups groups_of(const std::vector<int32_t>& sizes, int32_t unused = 0) {
  Groups groups{{0}, 0};
  for (const int32_t size : sizes) groups.offsets.push_back(groups.offsets.back() + size);
  groups.rows = groups.offsets.back() + unused;
  return groups;
}

const std::vector<std::vector<int32_t>> kSizes = {
    {1}, {130}, {0, 1, 0, 64, 65, 0}, {127, 128, 129, 256, 3}, {300, 0, 17, 500, 64, 1, 1, 200, 128, 90},
};

std::vector<int32_t> scattered(int64_t rows, int64_t slots) {
  std::vector<int32_t> index(static_cast<size_t>(rows));
  for (size_t i = 0; i < index.size(); ++i)
    index[i] = static_cast<int32_t>((static_cast<int64_t>(i) * 7919 + 13) % slots);
  return index;
}

size_t at(int64_t row, int64_t width, int64_t column) {
  return static_cast<size_t>(row * width + column);
}

double silu(double x) {
  return x / (1.0 + std::exp(-x));
}

// To the nearest bf16, ties to even.
double rounded(double x) {
  const float single = static_cast<float>(x);
  uint32_t bits = 0;
  std::memcpy(&bits, &single, sizeof(bits));
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  float result = 0.0f;
  std::memcpy(&result, &bits, sizeof(result));
  return static_cast<double>(result);
}

// out(R, columns) of forward or input_grad in double precision; rows in no group stay 0.
std::vector<double> product(const Groups& groups, GroupedGemmKind kind, const std::vector<double>& a,
                            const std::vector<int32_t>& index, int64_t divisor, const std::vector<double>& w,
                            int64_t n, int64_t k) {
  const bool forward = kind == GroupedGemmKind::forward;
  const int64_t columns = forward ? n : k, sum = forward ? k : n;
  std::vector<double> out(static_cast<size_t>(groups.rows * columns));
  for (int64_t g = 0; g < groups.count(); ++g) {
    for (int64_t r = groups.offsets[static_cast<size_t>(g)]; r < groups.offsets[static_cast<size_t>(g) + 1];
         ++r) {
      const int64_t from = index.empty() ? r : index[static_cast<size_t>(r)] / divisor;
      for (int64_t s = 0; s < sum; ++s) {
        const double x = a[at(from, sum, s)];
        for (int64_t c = 0; c < columns; ++c)
          out[at(r, columns, c)] += x * w[at(g * n, k, 0) + (forward ? at(c, k, s) : at(s, k, c))];
      }
    }
  }
  return out;
}

// Only the rows of groups.
std::vector<double> used(const std::vector<double>& all, const Groups& groups, int64_t width) {
  return {all.begin(), all.begin() + groups.offsets.back() * width};
}

GroupedGemmArgs args_of(GroupedGemmKind kind, const Values& a, const Values& b, const Groups& groups,
                        const Integers<int32_t>& offsets, int64_t n, int64_t k) {
  GroupedGemmArgs args{};
  args.kind = kind;
  args.a = a.data();
  args.b = b.data();
  args.offsets = offsets.data();
  args.num_groups = groups.count();
  args.num_rows = groups.rows;
  args.n = n;
  args.k = k;
  args.dtype = args.out_dtype = DType::bf16;
  return args;
}

void check_rows(GroupedGemmKind kind, const Groups& groups, int64_t n, int64_t k, bool gathered, bool fused) {
  const bool forward = kind == GroupedGemmKind::forward;
  const int64_t width_a = forward ? k : n, columns = forward ? n : k, top_k = 2;
  const int64_t slots = groups.rows + groups.rows % 2, tokens = slots / top_k;
  const Values a = Values::normal(DType::bf16, (gathered ? tokens : groups.rows) * width_a, 1);
  const Values w =
      Values::normal(DType::bf16, groups.count() * n * k, 2, 1.0 / std::sqrt(static_cast<double>(width_a)));
  const Integers<int32_t> offsets(groups.offsets);
  const std::vector<int32_t> order = scattered(groups.rows, slots);
  const Integers<int32_t> order_on_device(order);
  GroupedGemmArgs args = args_of(kind, a, w, groups, offsets, n, k);
  args.a_index = gathered ? order_on_device.data() : nullptr;
  args.index_divisor = gathered ? top_k : 1;
  const std::vector<double> reference =
      product(groups, kind, a.start(), gathered ? order : std::vector<int32_t>{}, top_k, w.start(), n, k);

  GroupedGemmArgs probe = args;
  if (fused) probe.act = a.data();
  for (const GroupedVariant* variant : grouped_variants(probe)) {
    SCOPED_TRACE(name_of(*variant));
    const Values out(DType::bf16, groups.rows * columns), act(DType::bf16, groups.rows * columns / 2);
    args.out = out.data();
    args.act = fused ? act.data() : nullptr;
    run_variant(*variant, args, nullptr);
    expect_close("out", used(out.host(), groups, columns), used(reference, groups, columns), DType::bf16);
    const size_t count = static_cast<size_t>(groups.offsets.back() * columns);
    if (args.act != nullptr) {
      std::vector<double> expected(count / 2);
      for (size_t i = 0; i < expected.size(); ++i)
        expected[i] = silu(rounded(reference[2 * i])) * rounded(reference[2 * i + 1]);
      expect_close("act", used(act.host(), groups, columns / 2), expected, DType::bf16);
    }
  }
}

void check_weight_grad(const Groups& groups, int64_t n, int64_t k, int gathered) {
  const int64_t top_k = 2, slots = groups.rows + groups.rows % 2, tokens = slots / top_k;
  const Values a = Values::normal(DType::bf16, (gathered == 1 ? tokens : groups.rows) * n, 1);
  const Values b = Values::normal(DType::bf16, (gathered == 2 ? tokens : groups.rows) * k, 2);
  const Integers<int32_t> offsets(groups.offsets);
  const std::vector<int32_t> order = scattered(groups.rows, slots);
  const Integers<int32_t> order_on_device(order);
  GroupedGemmArgs args = args_of(GroupedGemmKind::weight_grad, a, b, groups, offsets, n, k);
  args.a_index = gathered == 1 ? order_on_device.data() : nullptr;
  args.b_index = gathered == 2 ? order_on_device.data() : nullptr;
  args.index_divisor = gathered != 0 ? top_k : 1;
  std::vector<double> reference(static_cast<size_t>(groups.count() * n * k));
  for (int64_t g = 0; g < groups.count(); ++g) {
    for (int64_t r = groups.offsets[static_cast<size_t>(g)]; r < groups.offsets[static_cast<size_t>(g) + 1];
         ++r) {
      const int64_t token = order[static_cast<size_t>(r)] / top_k;
      for (int64_t i = 0; i < n; ++i) {
        const double x = a.start()[at(gathered == 1 ? token : r, n, i)];
        for (int64_t j = 0; j < k; ++j)
          reference[at(g * n + i, k, j)] += x * b.start()[at(gathered == 2 ? token : r, k, j)];
      }
    }
  }
  for (const GroupedVariant* variant : grouped_variants(args)) {
    SCOPED_TRACE(name_of(*variant));
    const Values out(DType::bf16, groups.count() * n * k);
    args.out = out.data();
    args.accumulate = false;
    run_variant(*variant, args, nullptr);
    expect_close("out", out.host(), reference, DType::bf16);
    args.accumulate = true;
    run_variant(*variant, args, nullptr);
    std::vector<double> twice = reference;
    for (double& x : twice) x *= 2.0;
    expect_close("accumulated", out.host(), twice, DType::bf16);
  }
}

struct Width {
  int64_t n, k;
};
const std::vector<Width> kWidths = {{64, 64}, {256, 128}, {208, 72}, {16, 8}, {384, 320}, {512, 136}};

TEST(CudaGroupedGemm, rows_agree_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for (const auto& sizes : kSizes) {
    for (const auto& [n, k] : kWidths) {
      for (const int unused : {0, 70}) {
        const Groups groups = groups_of(sizes, unused);
        SCOPED_TRACE(std::to_string(groups.count()) + " groups, " + std::to_string(groups.rows) + " rows, " +
                     std::to_string(n) + " x " + std::to_string(k));
        for (const bool gathered : {false, true}) {
          for (const bool fused : {false, true})
            check_rows(GroupedGemmKind::forward, groups, n, k, gathered, fused);
          check_rows(GroupedGemmKind::input_grad, groups, n, k, gathered, false);
        }
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

// More tiles than blocks: each block takes several, of several groups.
std::vector<int32_t> many_groups() {
  std::vector<int32_t> sizes;
  for (int32_t g = 0; g < 150; ++g) sizes.push_back(g % 11 == 3 ? 0 : g * 37 % 170);
  sizes.push_back(900);
  return sizes;
}

TEST(CudaGroupedGemm, blocks_take_many_tiles) {
  MOEBIUS_NEEDS_DEVICE();
  const Groups groups = groups_of(many_groups());
  for (const auto& [n, k] : std::vector<Width>{{512, 24}, {48, 512}, {144, 104}}) {
    for (const bool gathered : {false, true}) {
      for (const bool fused : {false, true})
        check_rows(GroupedGemmKind::forward, groups, n, k, gathered, fused);
      check_rows(GroupedGemmKind::input_grad, groups, n, k, gathered, false);
    }
    for (const int gather : {0, 1, 2}) check_weight_grad(groups, n, k, gather);
  }
}

// Rows of 28,672 columns past the 2^31st element; the last group is compared, whose rows lie there.
TEST(CudaGroupedGemm, operands_and_results_of_more_than_2_to_31_elements) {
  MOEBIUS_NEEDS_DEVICE();
  constexpr int64_t kN = 28672, kK = 16, kLast = 10;
  const Groups groups = groups_of({79990, kLast});
  ASSERT_GT(groups.rows * kN, int64_t{1} << 31);
  const Groups last = groups_of({0, kLast});
  const Integers<int32_t> offsets(groups.offsets);
  const Values x = Values::normal(DType::bf16, groups.rows * kK, 1),
               w = Values::normal(DType::bf16, 2 * kN * kK, 2, 0.25);
  const auto tail = [](const std::vector<double>& all, int64_t count) {
    return std::vector<double>(all.end() - static_cast<std::ptrdiff_t>(count), all.end());
  };
  const std::vector<double> x_last = tail(x.start(), kLast * kK);
  const std::vector<double> expected =
      product(last, GroupedGemmKind::forward, x_last, {}, 1, w.start(), kN, kK);

  const Values wide(DType::bf16, groups.rows * kN), act(DType::bf16, groups.rows * kN / 2);
  GroupedGemmArgs forward = args_of(GroupedGemmKind::forward, x, w, groups, offsets, kN, kK);
  forward.out = wide.data();
  forward.act = act.data();
  for (const GroupedVariant* variant : grouped_variants(forward)) {
    SCOPED_TRACE(name_of(*variant));
    run_variant(*variant, forward, nullptr);
    expect_close("out", wide.host((groups.rows - kLast) * kN, kLast * kN), expected, DType::bf16);
    std::vector<double> activated(expected.size() / 2);
    for (size_t i = 0; i < activated.size(); ++i)
      activated[i] = silu(rounded(expected[2 * i])) * rounded(expected[2 * i + 1]);
    expect_close("act", act.host((groups.rows - kLast) * kN / 2, kLast * kN / 2), activated, DType::bf16);
  }

  const std::vector<double> wide_last = wide.host((groups.rows - kLast) * kN, kLast * kN);
  const Values narrow(DType::bf16, groups.rows * kK), grad(DType::bf16, 2 * kN * kK);
  GroupedGemmArgs backward = args_of(GroupedGemmKind::input_grad, wide, w, groups, offsets, kN, kK);
  backward.out = narrow.data();
  for (const GroupedVariant* variant : grouped_variants(backward)) {
    SCOPED_TRACE(name_of(*variant));
    run_variant(*variant, backward, nullptr);
    expect_close("input_grad", narrow.host((groups.rows - kLast) * kK, kLast * kK),
                 product(last, GroupedGemmKind::input_grad, wide_last, {}, 1, w.start(), kN, kK),
                 DType::bf16);
  }
  std::vector<double> summed(static_cast<size_t>(kN * kK));
  for (int64_t r = 0; r < kLast; ++r)
    for (int64_t i = 0; i < kN; ++i)
      for (int64_t j = 0; j < kK; ++j) summed[at(i, kK, j)] += wide_last[at(r, kN, i)] * x_last[at(r, kK, j)];
  GroupedGemmArgs weights = args_of(GroupedGemmKind::weight_grad, wide, x, groups, offsets, kN, kK);
  weights.out = grad.data();
  for (const GroupedVariant* variant : grouped_variants(weights)) {
    SCOPED_TRACE(name_of(*variant));
    run_variant(*variant, weights, nullptr);
    expect_close("weight_grad", grad.host(kN * kK, kN * kK), summed, DType::bf16);
  }
}

// Every form once at sizes small enough for compute-sanitizer.
TEST(CudaGroupedGemm, small_groups_in_every_form) {
  MOEBIUS_NEEDS_DEVICE();
  const Groups groups = groups_of({0, 1, 0, 64, 65, 0, 200}, 70);
  for (const auto& [n, k] : std::vector<Width>{{208, 72}, {512, 264}}) {
    for (const bool gathered : {false, true}) {
      for (const bool fused : {false, true})
        check_rows(GroupedGemmKind::forward, groups, n, k, gathered, fused);
      check_rows(GroupedGemmKind::input_grad, groups, n, k, gathered, false);
    }
    for (const int gather : {0, 1, 2}) check_weight_grad(groups, n, k, gather);
  }
}

TEST(CudaGroupedGemm, weight_gradients_agree_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for (const auto& sizes : kSizes) {
    for (const auto& [n, k] : kWidths) {
      const Groups groups = groups_of(sizes, n == 208 ? 70 : 0);
      SCOPED_TRACE(std::to_string(groups.count()) + " groups, " + std::to_string(groups.rows) + " rows, " +
                   std::to_string(n) + " x " + std::to_string(k));
      for (const int gathered : {0, 1, 2}) check_weight_grad(groups, n, k, gathered);
      if (testing::Test::HasFailure()) return;
    }
  }
}

// The thread of a backward pass, whose first call of CUDA a product may be.
TEST(CudaGroupedGemm, a_product_may_be_the_first_call_of_its_thread) {
  MOEBIUS_NEEDS_DEVICE();
  constexpr int64_t kRows = 130, kN = 256, kK = 128;
  const Values a = Values::normal(DType::bf16, kRows * kK, 1), b = Values::normal(DType::bf16, kN * kK, 2),
               here(DType::bf16, kRows * kN), there(DType::bf16, kRows * kN);
  const Integers<int32_t> offsets(std::vector<int32_t>{0, static_cast<int32_t>(kRows)});
  GroupedGemmArgs args{};
  args.kind = GroupedGemmKind::forward;
  args.a = a.data();
  args.b = b.data();
  args.offsets = offsets.data();
  args.num_groups = args.index_divisor = 1;
  args.num_rows = kRows;
  args.n = kN;
  args.k = kK;
  args.dtype = args.out_dtype = DType::bf16;
  args.out = here.data();
  if (!grouped_gemm_serves(args)) GTEST_SKIP() << "no Hopper GPU";
  grouped_gemm(args, nullptr);
  args.out = there.data();
  std::string failure;
  std::thread([&] {
    try {
      grouped_gemm(args, nullptr);
    } catch (const std::exception& error) {
      failure = error.what();
    }
  }).join();
  EXPECT_EQ(failure, "");
  EXPECT_EQ(there.host(), here.host());
}

}  // namespace
}  // namespace moebius::kernels::cuda
