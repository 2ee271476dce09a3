#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/integers.h"
#include "base/parallel.h"
#include "kernels/cpu/int8_rows.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/scratch.h"

// A part of a product (one group's rows and a range of column panels) copies its rows into panels of A, and
// then goes through the panels of B: each is read from memory once and stays in the nearest cache for all
// rows, whose panels come from the second-level cache. Sums over k never leave the tile's buffer.
namespace moebius::kernels::cpu {
namespace {

// Rows of a part, at most: what the second-level cache holds beside a panel of B.
constexpr int64_t kRowBytes = 512 * 1024;
constexpr int64_t kPartsPerThread = 4;
// Products below this many multiply-adds are not worth waking a team for.
constexpr int64_t kSerialWork = 1 << 20;

struct Part {
  int64_t group;
  int64_t row_begin, row_end;
  int64_t panel_begin, panel_end;
  int64_t work;  // in rows times panels
};

class Int8Product {
 public:
  explicit Int8Product(const Int8GemmArgs& args)
      : args_(args),
        tiles_(int8_tiles()),
        tile_rows_(tiles_.rows / args.digits),
        padded_k_(int8_padded_k(args.k)),
        num_panels_(int8_padded_n(args.n) / kInt8PanelCols),
        num_stretches_(ceil_div(padded_k_, kInt8TileK)) {}

  std::vector<Part> cut() const {
    const int64_t most_rows =
        std::max(4 * tile_rows_, kRowBytes / std::max<int64_t>(args_.digits * padded_k_, 1));
    int64_t all = 0;
    for (int64_t g = 0; g < args_.num_groups; ++g) all += (rows_end(g) - rows_begin(g)) * num_panels_;
    const int64_t wanted = num_threads() == 1 ? all : ceil_div(all, kPartsPerThread * num_threads());
    std::vector<Part> parts;
    for (int64_t g = 0; g < args_.num_groups; ++g) {
      const int64_t begin = rows_begin(g), count = rows_end(g) - begin;
      const int64_t num_blocks = ceil_div(count, most_rows);
      for (int64_t block = 0; block < num_blocks; ++block) {
        const int64_t first = begin + tiles_.begin_of(block, num_blocks, count, args_.digits);
        const int64_t last = begin + tiles_.begin_of(block + 1, num_blocks, count, args_.digits);
        const int64_t panels =
            std::clamp<int64_t>(ceil_div(wanted, last - first), 1, std::max<int64_t>(num_panels_, 1));
        for (int64_t p = 0; p < num_panels_; p += panels) {
          const int64_t p_end = std::min(num_panels_, p + panels);
          parts.push_back({g, first, last, p, p_end, (last - first) * (p_end - p)});
        }
      }
    }
    // Largest first, so that the last ones to finish are small.
    std::stable_sort(parts.begin(), parts.end(),
                     [](const Part& a, const Part& b) { return a.work > b.work; });
    return parts;
  }

  int64_t multiply_adds(const Part& part) const {
    return part.work * args_.digits * kInt8PanelCols * padded_k_;
  }

  void run(const Part& part) const {
    thread_local Scratch scratch;
    const int64_t count = part.row_end - part.row_begin;
    const int64_t num_tiles = ceil_div(count, tile_rows_);
    const int64_t tile_bytes = num_stretches_ * tiles_.rows * kInt8RowStride;
    auto* const panels = reinterpret_cast<uint8_t*>(scratch.floats(num_tiles * tile_bytes / 4));
    // Rows are spread evenly over the tiles.
    const auto tile_begin = [&](int64_t tile) {
      return part.row_begin + tiles_.begin_of(tile, num_tiles, count, args_.digits);
    };
    for (int64_t tile = 0; tile < num_tiles; ++tile)
      gather(tile_begin(tile), tile_begin(tile + 1), panels + tile * tile_bytes);
    const int64_t panel_bytes = kInt8PanelCols * padded_k_;
    const int8_t* b = args_.b + (part.group * num_panels_ + part.panel_begin) * panel_bytes;
    // The next panel comes from memory while the tiles of this one are computed, a part of it with each. Four
    // words of B are eight lines.
    const int64_t lines = ceil_div(8, num_tiles), bytes_of_tile = panel_bytes * lines / 8;
    if (tiles_.begin != nullptr) tiles_.begin();
    for (int64_t p = part.panel_begin; p < part.panel_end; ++p, b += panel_bytes)
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t offset = tile * bytes_of_tile;
        const bool more = p + 1 < part.panel_end && offset < panel_bytes;
        multiply(part.group, p, tile_begin(tile), tile_begin(tile + 1), panels + tile * tile_bytes, b,
                 b + panel_bytes + offset, more ? lines : 0);
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

  void gather(int64_t begin, int64_t end, uint8_t* panel) const {
    const int64_t digits = args_.digits;
    for (int64_t r = 0; r < (end - begin) * digits; ++r) {
      const uint8_t* codes = args_.a + (source(begin + r / digits) * digits + r % digits) * args_.a_stride;
      for (int64_t s = 0; s < num_stretches_; ++s)
        std::memcpy(panel + (s * tiles_.rows + r) * kInt8RowStride, codes + s * kInt8TileK,
                    static_cast<size_t>(std::min(kInt8TileK, padded_k_ - s * kInt8TileK)));
    }
  }

  void multiply(int64_t group, int64_t panel, int64_t begin, int64_t end, const uint8_t* a, const int8_t* b,
                const int8_t* next, int64_t next_lines) const {
    alignas(64) int32_t sums[kInt8MostRows * kInt8PanelCols];
    const int64_t digits = args_.digits, rows = (end - begin) * digits;
    const int64_t col = panel * kInt8PanelCols, packed_col = group * num_panels_ * kInt8PanelCols + col;
    Int8StoreArgs t{};
    t.sums = sums;
    t.col_scales = args_.b_scales + packed_col;
    t.offsets = args_.b_offsets + packed_col;
    if (args_.bias != nullptr) t.bias = args_.bias + group * args_.n + col;
    t.swiglu = args_.swiglu;
    t.out_stride = args_.swiglu ? args_.n / 2 : args_.n;
    const int64_t out_col = args_.swiglu ? col / 2 : col;
    t.cols = std::min(args_.swiglu ? kInt8PanelCols / 2 : kInt8PanelCols, t.out_stride - out_col);
    t.out = static_cast<char*>(args_.out) + (begin * t.out_stride + out_col) * size_of(args_.out_dtype);
    t.num_rows = end - begin;
    t.digits = digits;
    t.dtype = args_.out_dtype;
    if (args_.sums == nullptr) fetch_to_write(t);
    if (num_stretches_ == 0) std::fill_n(sums, rows * kInt8PanelCols, 0);
    for (int64_t s = 0; s < num_stretches_; ++s)
      tiles_.tiles[rows]({a + s * tiles_.rows * kInt8RowStride, b + s * kInt8TileK * kInt8PanelCols,
                          std::min(kInt8TileK, padded_k_ - s * kInt8TileK) / 4, sums, s > 0,
                          next + s * kInt8TileK * 8 * next_lines, next_lines});
    if (args_.sums != nullptr) return keep(sums, args_.b_offsets + packed_col, begin, rows, col);
    float row_scales[kInt8MostRows];
    for (int64_t r = 0; r < rows; ++r)
      row_scales[r] = args_.a_scales[source(begin + r / digits) * digits + r % digits];
    t.row_scales = row_scales;
    store_int8_tile(t);
  }

  // What the tile's results will be written to comes while they are computed: of many rows each line lies in
  // a page of its own, which hardware does not foresee.
  static void fetch_to_write(const Int8StoreArgs& t) {
    constexpr int64_t kLine = 64;
    if (t.num_rows <= 4) return;
    const int64_t stride = t.out_stride * size_of(t.dtype), bytes = t.cols * size_of(t.dtype);
    for (int64_t r = 0; r < t.num_rows; ++r)
      for (int64_t i = 0; i < bytes; i += kLine)
        __builtin_prefetch(static_cast<const char*>(t.out) + r * stride + i, 1, 3);
  }

  void keep(const int32_t* sums, const int32_t* offsets, int64_t begin, int64_t rows, int64_t col) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < std::min(kInt8PanelCols, args_.n - col); ++j)
        args_.sums[(begin + r) * args_.n + col + j] = static_cast<int32_t>(
            static_cast<uint32_t>(sums[r * kInt8PanelCols + j]) - static_cast<uint32_t>(offsets[j]));
  }

  const Int8GemmArgs& args_;
  const Int8TileTable& tiles_;
  const int64_t tile_rows_;  // rows of the result in a tile
  const int64_t padded_k_, num_panels_, num_stretches_;
};

// The weight's row that stands in a column of the packed form; -1 for a column that fills up.
int64_t row_of_column(const Int8PackArgs& args, int64_t col) {
  int64_t row = col;
  if (args.columns == Int8Columns::gate_up) {
    constexpr int64_t kHalf = kInt8PanelCols / 2;
    const int64_t panel = col / kInt8PanelCols, in_panel = col % kInt8PanelCols;
    row = 2 * (panel * kHalf + in_panel % kHalf) + in_panel / kHalf;
  }
  return row < args.n ? row : -1;
}

void pack_panel(const Int8PackArgs& args, int64_t group, int64_t panel) {
  const int64_t padded_k = int8_padded_k(args.k), padded_n = int8_padded_n(args.n);
  const int64_t first = group * padded_n + panel * kInt8PanelCols;
  int8_t* const packed = args.packed + first * padded_k;
  std::memset(packed, 0, static_cast<size_t>(kInt8PanelCols * padded_k));
  for (int64_t j = 0; j < kInt8PanelCols; ++j) {
    const int64_t row = row_of_column(args, panel * kInt8PanelCols + j);
    int32_t sum = 0;
    float scale = 0;
    if (row >= 0) {
      const int8_t* codes = args.codes + (group * args.n + row) * args.k;
      int64_t k = 0;
      for (; k + 4 <= args.k; k += 4) std::memcpy(packed + k * kInt8PanelCols + 4 * j, codes + k, 4);
      if (k < args.k)
        std::memcpy(packed + k * kInt8PanelCols + 4 * j, codes + k, static_cast<size_t>(args.k - k));
      for (k = 0; k < args.k; ++k) sum += codes[k];
      scale = args.one_scale ? args.scales[0] : args.scales[group * args.n + row];
    }
    args.packed_scales[first + j] = scale;
    args.offsets[first + j] = static_cast<int32_t>(128u * static_cast<uint32_t>(sum));
  }
}

}  // namespace

void int8_pack(const Int8PackArgs& args, Stream) {
  MOEBIUS_CHECK_LE(args.k, kInt8MaxK);
  MOEBIUS_CHECK(args.columns == Int8Columns::plain || args.n % 2 == 0, "gate and up of ", args.n, " rows");
  const int64_t num_panels = int8_padded_n(args.n) / kInt8PanelCols;
  parallel_for(0, args.num_groups * num_panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_panel(args, i / num_panels, i % num_panels);
  });
}

void int8_gemm(const Int8GemmArgs& args, Stream) {
  MOEBIUS_CHECK(args.offsets != nullptr || args.num_groups == 1, "offsets are needed for ", args.num_groups,
                " groups");
  MOEBIUS_CHECK_GE(args.index_divisor, 1);
  MOEBIUS_CHECK_LE(args.k, kInt8MaxK);
  MOEBIUS_CHECK_GE(args.a_stride, int8_padded_k(args.k));
  MOEBIUS_CHECK(args.digits == 1 || (args.digits == 2 && args.sums == nullptr), args.digits, " digits");
  const Int8Product product(args);
  const std::vector<Part> parts = product.cut();
  int64_t work = 0;
  for (const Part& part : parts) work += product.multiply_adds(part);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) product.run(parts[static_cast<size_t>(i)]);
  };
  const int64_t count = static_cast<int64_t>(parts.size());
  if (work < kSerialWork) {
    run(0, count);
  } else {
    parallel_tasks(count, run);
  }
}

}  // namespace moebius::kernels::cpu
