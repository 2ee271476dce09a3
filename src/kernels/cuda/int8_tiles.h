// Which tile of the integer product for which sizes: host arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace moebius::kernels::cuda {

// What the two blocks of a cluster have in common: nothing (no clusters), the weights of neighbouring row
// tiles, or the rows of neighbouring column tiles.
enum class Share : uint8_t { none, b, a };

struct Int8Tile {
  int32_t rows, columns;  // of a block
  bool pingpong;
  Share share;
};

struct Int8Sizes {
  double rows, groups;  // of all groups together
  int64_t n, k;
};

// Clock cycles of the whole product, roughly: tiles in waves over the multiprocessors; a tile takes the
// longer of its multiplying and its copying from the second-level cache, and its results are written beside
// the next one's multiplying where two warpgroups take turns. Constants fitted to
// docs/benchmarks/gpu-kernel-notes.md.
inline double int8_cycles(const Int8Tile& tile, const Int8Sizes& size, int multiprocessors) {
  constexpr double kOpsPerCycle =
      3200;  // multiply-adds of one multiprocessor, all working at the power limit
  constexpr double kBytesPerCycle = 46;  // from the second-level cache to one multiprocessor, all reading
  constexpr double kStageCycles = 80;    // barriers and instructions of a stage of 128 values
  constexpr double kResultCycles = 0.3;  // for each result that a warpgroup writes
  const double blocks = tile.share == Share::none ? 1 : 2;
  const double rows = tile.rows * (tile.share == Share::b ? 2 : 1),
               columns = tile.columns * (tile.share == Share::a ? 2 : 1);
  const double groups = std::max(1.0, std::min(size.groups, size.rows)), mean = size.rows / groups;
  // A group's last tile is half full on average, once there are several.
  const double row_tiles =
      size.groups == 1 ? std::ceil(mean / rows) : (mean <= 0.75 * rows ? 1.0 : mean / rows + 0.5);
  const double tiles = groups * row_tiles * std::ceil(static_cast<double>(size.n) / columns);
  const double slots = std::floor(multiprocessors / blocks);
  // The last wave is shared by all, where there are many.
  const double waves = tiles > 8 * slots ? tiles / slots + 0.5 : std::ceil(tiles / slots);
  const double bytes_a = tile.rows / (tile.share == Share::a ? 2.0 : 1.0),
               bytes_b = tile.columns / (tile.share == Share::b ? 2.0 : 1.0);
  const double stages = std::ceil(static_cast<double>(size.k) / 128.0);
  // Tiles of few rows: what is copied of rows that are not there comes from nowhere.
  const double used = std::min(1.0, mean / tile.rows);
  const double copying = (bytes_a * used + bytes_b) * 128.0 / kBytesPerCycle;
  const double multiplying = tile.rows * static_cast<double>(tile.columns) * 128.0 / kOpsPerCycle;
  const double main = stages * std::max({copying, multiplying, kStageCycles});
  const double results = tile.rows * tile.columns * used / (tile.pingpong ? 1.0 : 2.0) * kResultCycles;
  return tile.pingpong ? waves * std::max(main, (main + results) / 2) + results : waves * (main + results);
}

}  // namespace moebius::kernels::cuda
