#include "kernels/api/int4_gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/integers.h"
#include "base/parallel.h"
#include "kernels/cpu/int4_panel.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/scratch.h"

// A part of a product is a block of one group's rows and a range of column panels. A panel's codes along one
// group of k become int8 in the nearest cache, once for all rows of the part, and go through the int8 tiles;
// their sums are scaled and added up in fp32. From memory comes half a byte a code.
namespace moebius::kernels::cpu {
namespace {

constexpr int64_t kInt4Rows = 112;  // of a part: the totals of a panel stay in the nearest cache
constexpr int64_t kInt4PartsPerThread = 4;
constexpr int64_t kInt4SerialWork = 1 << 19;  // multiply-adds

struct Int4Part {
  int64_t group, row_begin, row_end, panel_begin, panel_end;
  int64_t work() const { return (row_end - row_begin) * (panel_end - panel_begin); }
};

class Int4Product {
 public:
  explicit Int4Product(const Int4GemmArgs& args)
      : args_(args),
        tiles_(int8_tiles()),
        tile_rows_(tiles_.rows / args.digits),
        groups_k_(int4_num_groups_k(args.k, args.group)),
        num_panels_(int8_padded_n(args.n) / kInt8PanelCols) {}

  std::vector<Int4Part> cut() const {
    int64_t all = 0;
    for (int64_t g = 0; g < args_.num_groups; ++g) all += (rows_end(g) - rows_begin(g)) * num_panels_;
    const int64_t wanted = num_threads() == 1 ? all : ceil_div(all, kInt4PartsPerThread * num_threads());
    std::vector<Int4Part> parts;
    for (int64_t g = 0; g < args_.num_groups; ++g) {
      const int64_t count = rows_end(g) - rows_begin(g), num_blocks = ceil_div(count, kInt4Rows);
      for (int64_t block = 0; block < num_blocks; ++block) {
        const int64_t first = rows_begin(g) + block * count / num_blocks,
                      last = rows_begin(g) + (block + 1) * count / num_blocks;
        const int64_t panels =
            std::clamp<int64_t>(ceil_div(wanted, last - first), 1, std::max<int64_t>(num_panels_, 1));
        for (int64_t p = 0; p < num_panels_; p += panels)
          parts.push_back({g, first, last, p, std::min(num_panels_, p + panels)});
      }
    }
    std::stable_sort(parts.begin(), parts.end(),
                     [](const Int4Part& a, const Int4Part& b) { return a.work() > b.work(); });
    return parts;
  }

  int64_t multiply_adds(const Int4Part& part) const {
    return part.work() * args_.digits * kInt8PanelCols * args_.k;
  }

  void run(const Int4Part& part) const {
    thread_local Scratch scratch;
    const int64_t rows = part.row_end - part.row_begin, num_tiles = ceil_div(rows, tile_rows_);
    // The longest rows are gathered in stretches, each of whole groups.
    const int64_t groups_at_once = std::max<int64_t>(1, kInt8TileK / args_.group);
    const int64_t num_stretches = ceil_div(groups_k_, groups_at_once);
    const int64_t a_bytes = num_tiles * tiles_.rows * kInt8RowStride;
    const int64_t total_floats = rows * kInt8PanelCols;
    const int64_t panel_bytes = kInt8PanelCols * args_.group;
    float* const memory =
        scratch.floats(num_stretches * a_bytes / 4 + round_up(total_floats, int64_t{16}) + panel_bytes / 4);
    auto* const a = reinterpret_cast<uint8_t*>(memory);
    float* const total = memory + num_stretches * a_bytes / 4;
    auto* const codes = reinterpret_cast<int8_t*>(total + round_up(total_floats, int64_t{16}));
    const auto tile_begin = [&](int64_t tile) {
      return part.row_begin + tiles_.begin_of(tile, num_tiles, rows, args_.digits);
    };
    for (int64_t tile = 0; tile < num_tiles; ++tile)
      gather(tile_begin(tile), tile_begin(tile + 1), a + tile * tiles_.rows * kInt8RowStride, a_bytes);
    if (tiles_.begin != nullptr) tiles_.begin();
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel) {
      std::fill_n(total, total_floats, 0.0f);
      const int64_t at = part.group * num_panels_ + panel;
      for (int64_t g = 0; g < groups_k_; ++g) {
        const int64_t column = (at * groups_k_ + g) * kInt8PanelCols;
        unpack_int4(args_.b + column * args_.group / 2, args_.group / 4, codes);
        const uint8_t* const a_group = a + g / groups_at_once * a_bytes + g % groups_at_once * args_.group;
        for (int64_t tile = 0; tile < num_tiles; ++tile)
          multiply(tile_begin(tile), tile_begin(tile + 1), a_group + tile * tiles_.rows * kInt8RowStride,
                   codes, column, total + (tile_begin(tile) - part.row_begin) * kInt8PanelCols);
      }
      store(part, panel, total);
    }
    if (tiles_.end != nullptr) tiles_.end();
  }

 private:
  int64_t rows_begin(int64_t g) const { return args_.offsets == nullptr ? 0 : args_.offsets[g]; }
  int64_t rows_end(int64_t g) const {
    return args_.offsets == nullptr ? args_.num_rows : args_.offsets[g + 1];
  }
  int64_t source(int64_t row) const {
    return args_.a_index == nullptr ? row : args_.a_index[row] / args_.index_divisor;
  }

  void gather(int64_t begin, int64_t end, uint8_t* panel, int64_t stretch_bytes) const {
    const int64_t digits = args_.digits, padded = int4_padded_k(args_.k, args_.group);
    const int64_t at_once = std::max<int64_t>(1, kInt8TileK / args_.group) * args_.group;
    for (int64_t r = 0; r < (end - begin) * digits; ++r) {
      const uint8_t* codes = args_.a + (source(begin + r / digits) * digits + r % digits) * args_.a_stride;
      uint8_t* to = panel + r * kInt8RowStride;
      for (int64_t k = 0; k < padded; k += at_once, to += stretch_bytes)
        std::memcpy(to, codes + k, static_cast<size_t>(std::min(at_once, padded - k)));
    }
  }

  void multiply(int64_t begin, int64_t end, const uint8_t* a, const int8_t* codes, int64_t column,
                float* total) const {
    alignas(64) int32_t sums[kInt8MostRows * kInt8PanelCols];
    const int64_t digits = args_.digits, rows = (end - begin) * digits;
    tiles_.tiles[rows]({a, codes, args_.group / 4, sums, false, codes, 0});
    float row_scales[kInt8MostRows];
    for (int64_t r = 0; r < rows; ++r)
      row_scales[r] = args_.a_scales[source(begin + r / digits) * digits + r % digits];
    add_int4_group(
        {sums, row_scales, args_.b_scales + column, args_.b_sums + column, total, end - begin, digits});
  }

  void store(const Int4Part& part, int64_t panel, const float* total) const {
    const int64_t col = panel * kInt8PanelCols;
    Int4StoreArgs t{};
    t.total = total;
    t.bias = args_.bias == nullptr ? nullptr : args_.bias + part.group * args_.n + col;
    t.out = static_cast<char*>(args_.out) + (part.row_begin * args_.n + col) * size_of(args_.out_dtype);
    t.out_stride = args_.n;
    t.num_rows = part.row_end - part.row_begin;
    t.cols = std::min(kInt8PanelCols, args_.n - col);
    t.dtype = args_.out_dtype;
    store_int4(t);
  }

  const Int4GemmArgs& args_;
  const Int8TileTable& tiles_;
  const int64_t tile_rows_, groups_k_, num_panels_;
};

void check_int4_group(int64_t group) {
  MOEBIUS_CHECK(group >= kInt8StepK && group % kInt8StepK == 0 && group <= kInt8TileK, "groups of ", group);
}

void pack_int4_panel(const Int4PackArgs& args, int64_t weight, int64_t panel) {
  constexpr int64_t kHalf = kInt8PanelCols / 2;
  const int64_t groups_k = int4_num_groups_k(args.k, args.group), row_bytes = ceil_div(args.k, int64_t{2});
  const int64_t num_panels = int8_padded_n(args.n) / kInt8PanelCols;
  const int64_t first = (weight * num_panels + panel) * groups_k * kInt8PanelCols;
  uint8_t* const packed = args.packed + first * args.group / 2;
  std::memset(packed, 0x88, static_cast<size_t>(groups_k * kInt8PanelCols * args.group / 2));
  std::fill_n(args.packed_scales + first, groups_k * kInt8PanelCols, 0.0f);
  std::fill_n(args.sums + first, groups_k * kInt8PanelCols, int16_t{0});
  for (int64_t j = 0; j < kInt8PanelCols; ++j) {
    const int64_t row = panel * kInt8PanelCols + j;
    if (row >= args.n) break;
    const uint8_t* codes = args.codes + (weight * args.n + row) * row_bytes;
    for (int64_t k = 0; k < args.k; ++k) {
      const int code = (codes[k / 2] >> (k % 2 * 4) & 15);
      uint8_t& byte = packed[(k / 4 * kHalf + j % kHalf) * 4 + k % 4];
      byte = static_cast<uint8_t>(j < kHalf ? (byte & 0xF0) | code : (byte & 0x0F) | code << 4);
      args.sums[first + k / args.group * kInt8PanelCols + j] += static_cast<int16_t>(code - 8);
    }
    for (int64_t g = 0; g < groups_k; ++g)
      args.packed_scales[first + g * kInt8PanelCols + j] =
          args.scales[(weight * args.n + row) * groups_k + g];
  }
}

}  // namespace

}  // namespace moebius::kernels::cpu

namespace moebius::kernels {

void int4_pack(const Int4PackArgs& args) {
  using namespace cpu;
  check_int4_group(args.group);
  const int64_t num_panels = int8_padded_n(args.n) / kInt8PanelCols;
  parallel_for(0, args.num_groups * num_panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_int4_panel(args, i / num_panels, i % num_panels);
  });
}

void int4_gemm(const Int4GemmArgs& args) {
  using namespace cpu;
  check_int4_group(args.group);
  MOEBIUS_CHECK(args.offsets != nullptr || args.num_groups == 1, "offsets are needed for ", args.num_groups,
                " groups");
  MOEBIUS_CHECK_GE(args.index_divisor, 1);
  MOEBIUS_CHECK_GE(args.a_stride, int4_padded_k(args.k, args.group));
  MOEBIUS_CHECK(args.digits == 1 || args.digits == 2, args.digits, " digits");
  const Int4Product product(args);
  const std::vector<Int4Part> parts = product.cut();
  int64_t work = 0;
  for (const Int4Part& part : parts) work += product.multiply_adds(part);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) product.run(parts[static_cast<size_t>(i)]);
  };
  const auto count = static_cast<int64_t>(parts.size());
  if (work < kInt4SerialWork) {
    run(0, count);
  } else {
    parallel_tasks(count, run);
  }
}

}  // namespace moebius::kernels
