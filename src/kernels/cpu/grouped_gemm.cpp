#include "kernels/cpu/grouped_gemm.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/integers.h"
#include "base/parallel.h"
#include "kernels/cpu/gemm_block.h"

namespace moebius::kernels::cpu {
namespace {

// Packed right operand of a block, at most; it should stay in a second-level cache of 1 MiB beside the left
// panel.
constexpr int64_t kPackedBytes = 800 * 1024;
// Register tiles along m in a block: below the first, packing the right operand costs more than it saves in
// balance.
constexpr int64_t kMinRowTiles = 6, kMaxRowTiles = 48;
constexpr int64_t kBlocksPerThread = 6;
// Products below this many multiply-adds are not worth waking a team for.
constexpr int64_t kSerialWork = 1 << 18;

// Part of one group's product: rows and columns of its C.
struct Part {
  int64_t group;
  int64_t m_begin, m_end, n_begin, n_end;
  int64_t work;
};

struct Product {
  GroupedGemmArgs args;
  GemmGeometry geometry;

  bool ragged_k() const { return args.kind == GroupedGemmKind::weight_grad; }
  int64_t rows_begin(int64_t g) const { return args.offsets == nullptr ? 0 : args.offsets[g]; }
  int64_t rows_end(int64_t g) const { return args.offsets == nullptr ? args.num_rows : args.offsets[g + 1]; }
  int64_t m(int64_t g) const { return ragged_k() ? args.n : rows_end(g) - rows_begin(g); }
  int64_t n() const { return args.kind == GroupedGemmKind::forward ? args.n : args.k; }
  int64_t k(int64_t g) const {
    if (ragged_k()) return rows_end(g) - rows_begin(g);
    return args.kind == GroupedGemmKind::forward ? args.k : args.n;
  }
};

const void* advance(const void* p, int64_t elements, DType dtype) {
  return static_cast<const char*>(p) + elements * size_of(dtype);
}

std::vector<Part> cut(const Product& product) {
  const GemmGeometry& geometry = product.geometry;
  const int64_t num_groups = product.args.num_groups, n = product.n();
  int64_t longest_k = 0, most_m = 0, num_tiles = 0;
  for (int64_t g = 0; g < num_groups; ++g) {
    longest_k = std::max(longest_k, product.k(g));
    most_m = std::max(most_m, product.m(g));
    num_tiles += ceil_div(product.m(g), geometry.tile_rows) * ceil_div(n, geometry.tile_cols);
  }
  const int64_t words =
      std::clamp<int64_t>(ceil_div(longest_k, geometry.elements_per_word), 1, geometry.max_words);
  const int64_t most_cols = std::max<int64_t>(4 * geometry.tile_cols, kPackedBytes / 4 / words);
  const int64_t num_col_parts = ceil_div(n, most_cols);
  int64_t cols = ceil_div(ceil_div(n, num_col_parts), geometry.tile_cols) * geometry.tile_cols;
  const int64_t wanted_tiles = num_tiles / (kBlocksPerThread * num_threads());
  // So few rows wait for the right operand, which is not packed for them: parts may be as small as balance
  // asks.
  if (product.args.kind == GroupedGemmKind::forward && most_m <= kSkinnyRows && num_threads() > 1)
    cols = std::min(cols, std::max<int64_t>(wanted_tiles, 1) * geometry.tile_cols);
  const int64_t rows =
      geometry.tile_rows * std::clamp(wanted_tiles / (cols / geometry.tile_cols), kMinRowTiles, kMaxRowTiles);

  std::vector<Part> parts;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t m = product.m(g);
    if (m == 0) continue;
    const int64_t num_row_parts = ceil_div(m, rows);
    const int64_t row_tiles = ceil_div(m, geometry.tile_rows);
    for (int64_t i = 0; i < num_row_parts; ++i) {
      const int64_t begin = i * row_tiles / num_row_parts * geometry.tile_rows;
      const int64_t end = std::min(m, (i + 1) * row_tiles / num_row_parts * geometry.tile_rows);
      for (int64_t c = 0; c < n; c += cols) {
        const int64_t c_end = std::min(n, c + cols);
        parts.push_back({g, begin, end, c, c_end, (end - begin) * (c_end - c) * (product.k(g) + 16)});
      }
    }
  }
  // Largest first, so that the last ones to finish are small.
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.work > b.work; });
  return parts;
}

GemmBlock block_of(const Product& product, const Part& part) {
  const GroupedGemmArgs& args = product.args;
  const int64_t first_row = product.rows_begin(part.group);
  GemmBlock block{};
  block.m = part.m_end - part.m_begin;
  block.n = part.n_end - part.n_begin;
  block.k = product.k(part.group);
  block.accumulate = args.accumulate;
  block.dtype = args.dtype;
  block.out_dtype = args.out_dtype;
  block.out_stride = product.n();

  const int64_t a_stride = args.kind == GroupedGemmKind::forward ? args.k : args.n;
  // Rows of the ragged dimension start at `row` of the tensor, or of its index where there is one.
  const auto ragged = [&](const void* data, const int32_t* index, int64_t stride, int64_t row, int64_t col) {
    const void* p = advance(data, (index == nullptr ? row * stride : 0) + col, args.dtype);
    return GemmOperand{p, stride, index == nullptr ? nullptr : index + row, args.index_divisor};
  };
  const auto weight = [&](int64_t row, int64_t col) {
    return GemmOperand{advance(args.b, (part.group * args.n + row) * args.k + col, args.dtype), args.k,
                       nullptr, 1};
  };
  int64_t out_row = 0;
  switch (args.kind) {
    case GroupedGemmKind::forward:
      block.a = ragged(args.a, args.a_index, a_stride, first_row + part.m_begin, 0);
      block.b = weight(part.n_begin, 0);
      out_row = first_row + part.m_begin;
      break;
    case GroupedGemmKind::input_grad:
      block.a = ragged(args.a, args.a_index, a_stride, first_row + part.m_begin, 0);
      block.b = weight(0, part.n_begin);
      block.b_rows_are_k = true;
      out_row = first_row + part.m_begin;
      break;
    case GroupedGemmKind::weight_grad:
      block.a = ragged(args.a, args.a_index, a_stride, first_row, part.m_begin);
      block.b = ragged(args.b, args.b_index, args.k, first_row, part.n_begin);
      block.a_rows_are_k = block.b_rows_are_k = true;
      out_row = part.group * args.n + part.m_begin;
      break;
  }
  block.out =
      static_cast<char*>(args.out) + (out_row * block.out_stride + part.n_begin) * size_of(args.out_dtype);
  return block;
}

}  // namespace

void grouped_gemm(const GroupedGemmArgs& args, Stream) {
  MOEBIUS_CHECK(args.offsets != nullptr || args.num_groups == 1, "offsets are needed for ", args.num_groups,
                " groups");
  MOEBIUS_CHECK_GE(args.index_divisor, 1);
  const Product product{args, gemm_geometry(args.dtype)};
  const std::vector<Part> parts = cut(product);
  int64_t work = 0;
  for (const Part& part : parts) work += part.work;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_gemm_block(block_of(product, parts[static_cast<size_t>(i)]));
  };
  const int64_t count = static_cast<int64_t>(parts.size());
  if (work < kSerialWork) {
    run(0, count);
  } else {
    parallel_tasks(count, run);
  }
}

}  // namespace moebius::kernels::cpu
