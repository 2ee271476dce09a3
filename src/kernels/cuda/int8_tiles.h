// Which tile of the integer product for which sizes: host arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace moebius::kernels::cuda {

struct Int8Tile {
  int32_t rows, columns;  // of a block
  bool pingpong;
  int32_t blocks = 1;  // 1, or 2 (a cluster) that share the rows of two neighbouring column tiles
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
  // Multiply-adds of one multiprocessor at the power limit, and bytes from the second-level cache to it, when
  // all of them compute and read; and when few do.
  constexpr double kOpsPerCycle = 3600, kBytesPerCycle = 46, kMostBytesPerCycle = 55;
  constexpr double kStageCycles = 200;  // of a stage of 128 values, however small: a chain of waits
  constexpr double kBlockCycles = 45;   // for each block that is started
  // For each result that a warpgroup writes, alone and beside the other one's multiplying.
  const double result_cycles = tile.pingpong ? 0.65 : 0.1;
  const double blocks = tile.blocks;
  const double rows = tile.rows, columns = tile.columns * blocks;
  const double groups = std::max(1.0, std::min(size.groups, size.rows)), mean = size.rows / groups;
  // A group's last tile is half full on average, once there are several.
  const double row_tiles =
      size.groups == 1 ? std::ceil(mean / rows) : (mean <= 0.75 * rows ? 1.0 : mean / rows + 0.5);
  const double tiles = groups * row_tiles * std::ceil(static_cast<double>(size.n) / columns);
  const double slots = std::floor(multiprocessors / blocks);
  // The last wave is shared by all, where there are many.
  const double waves = tiles > 8 * slots ? tiles / slots + 0.5 : std::ceil(tiles / slots);
  const double bytes_a = tile.rows / blocks, bytes_b = tile.columns;
  const double stages = std::ceil(static_cast<double>(size.k) / 128.0);
  // Tiles of few rows: what is copied of rows that are not there comes from nowhere.
  const double used = std::min(1.0, mean / tile.rows);
  const double readers = std::min(tiles * blocks, static_cast<double>(multiprocessors));
  const double copying = (bytes_a * used + bytes_b) * 128.0 /
                         std::min(kMostBytesPerCycle, kBytesPerCycle * multiprocessors / readers);
  const double multiplying = tile.rows * static_cast<double>(tile.columns) * 128.0 / kOpsPerCycle;
  const double main = stages * std::max({copying, multiplying, kStageCycles});
  const double results = tile.rows * tile.columns * used / (tile.pingpong ? 1.0 : 2.0) * result_cycles;
  return kBlockCycles * readers +
         (tile.pingpong ? waves * std::max(main, (main + results) / 2) + results : waves * (main + results));
}

}  // namespace moebius::kernels::cuda
