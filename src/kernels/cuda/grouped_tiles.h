// Which tile of which group a block of a grouped product works on. One order for host and device, so that it
// is tested without a GPU: tiles (or pairs of them) are numbered group by group; block (or pair of blocks) b
// of n takes numbers b, b + n, b + 2n, ...
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace moebius::kernels::cuda {

struct TileShape {
  int32_t rows, columns;
};

struct GroupedTiles {
  TileShape tile;
  bool ragged_sum;  // weight gradients: each group has `rows` x `columns` outputs, its rows are summed over
  int32_t rows;     // of each group's output when ragged_sum
  int32_t columns;  // of the output
  bool rows_first;  // neighbouring numbers share columns; else they share rows
  bool pairs;       // a number is two tiles, for two blocks that share an operand
};

struct TilePlace {
  int32_t group, row_tile, column_tile;
  bool same_columns;  // as the other tile of the pair; else it has the same rows
};

MOEBIUS_HOST_DEVICE int32_t tile_count(int32_t extent, int32_t tile) {
  return (extent + tile - 1) / tile;
}

// Tiles, or pairs of tiles, of a group with so many rows. Pairs have the same columns and neighbouring rows;
// the last of an odd number of row tiles makes pairs along its columns, so that nothing is computed in vain
// unless both numbers are odd.
MOEBIUS_HOST_DEVICE int32_t tiles_of_group(const GroupedTiles& t, int32_t group_rows) {
  const int32_t rows = tile_count(t.ragged_sum ? t.rows : group_rows, t.tile.rows),
                columns = tile_count(t.columns, t.tile.columns);
  return t.pairs ? rows / 2 * columns + rows % 2 * ((columns + 1) / 2) : rows * columns;
}

// `starts` (G + 1): number of the first tile of each group, then of all tiles. `group`: at or before the
// tile's group; the search moves on from it. `number` must be below starts[G]. `rank`: which of a pair, 0 or
// 1; the tile of rank 1 may lie outside of the output.
MOEBIUS_HOST_DEVICE TilePlace tile_at(const GroupedTiles& t, const int32_t* starts, int32_t number,
                                      int32_t group, int32_t rank = 0) {
  while (number >= starts[group + 1]) ++group;
  const int32_t local = number - starts[group], column_tiles = tile_count(t.columns, t.tile.columns);
  // Row tiles, or whole pairs of them.
  const int32_t lines = (starts[group + 1] - starts[group]) / column_tiles;
  const int32_t left = local - lines * column_tiles;
  if (left >= 0) return {group, 2 * lines, 2 * left + rank, false};
  int32_t line = 0, column = 0;
  if (t.rows_first) {
    column = local / lines;
    line = local - column * lines;
  } else {
    line = local / column_tiles;
    column = local - line * column_tiles;
  }
  return {group, t.pairs ? 2 * line + rank : line, column, true};
}

// Which operand is gathered: the one that gives the tile its rows, or its columns.
enum class GatheredOperand : uint8_t { none, rows, columns };

// What the speed of a variant depends on.
struct ProductForm {
  bool sums_rows;  // weight gradients
  GatheredOperand gathered;
  int64_t columns;
  double sum;              // summed extent; where rows are summed, the mean of a group
  double mean_rows;        // of a group's output
  bool activates = false;  // its result
};
struct VariantForm {
  int32_t tile_columns;
  bool pingpong, pairs;
};

// How long a variant takes for one product, against others: columns that are computed and thrown away (by
// pairs also half a pair, where both numbers of tiles are odd); what two warpgroups on one tile (`pingpong`
// false) lose while results are written, which is less the more is summed; and what reading and gathering
// cost. Constants fitted to what an H200 takes at its power limit: docs/benchmarks/gpu-kernel-notes.md.
inline double relative_time(const VariantForm& variant, const ProductForm& product) {
  const int64_t tiles = (product.columns + variant.tile_columns - 1) / variant.tile_columns;
  double time = static_cast<double>(tiles * variant.tile_columns) / static_cast<double>(product.columns);
  if (variant.pairs && tiles % 2 != 0 && !product.sums_rows) {
    const double row_tiles = product.mean_rows / 128.0;
    time *= 1.0 + 0.5 / ((row_tiles < 1.0 ? 1.0 : row_tiles) * static_cast<double>(tiles));
  }
  if (!variant.pingpong) {
    const double sum = product.sum < 70.0 ? 70.0 : product.sum;
    time *= product.sums_rows ? 0.98 + 40.0 / sum : 1.005 + 62.0 / sum;
  }
  // By what is summed and gathered: narrow tile, in pairs, wide tile, in pairs. Rows that are gathered for a
  // product that is activated have a line of their own.
  constexpr double kRows[3][4] = {
      {1.0, 1.02, 1.0, 0.985}, {1.15, 1.0, 0.975, 0.955}, {1.15, 1.0, 0.985, 0.97}};
  constexpr double kSums[3][4] = {{1.0, 1.06, 1.012, 1.02}, {1.05, 1.05, 1.035, 1.0}, {1.0, 1.0, 1.01, 1.01}};
  const int form = 2 * (variant.tile_columns > 192) + variant.pairs,
            gathered = static_cast<int>(product.gathered);
  return time * (product.sums_rows ? kSums[gathered][form]
                                   : kRows[gathered > 0 && product.activates ? 2 : gathered][form]);
}

}  // namespace moebius::kernels::cuda
