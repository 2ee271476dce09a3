// Which tile of which group a block of a grouped product works on. One order for host and device, so that it
// is tested without a GPU: tiles are numbered group by group; block (or cluster) b of n takes tiles b, b + n,
// b + 2n, ...
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace moebius::kernels::cuda {

struct TileShape {
  int32_t rows, columns;  // of one tile (of a cluster's tile, where blocks work in clusters)
};

struct GroupedTiles {
  TileShape tile;
  bool ragged_sum;  // weight gradients: each group has `rows` x `columns` outputs, its rows are summed over
  int32_t rows;     // of each group's output when ragged_sum
  int32_t columns;  // of the output
  bool rows_first;  // neighbouring numbers share columns; else they share rows
};

struct TilePlace {
  int32_t group, row_tile, column_tile;
};

MOEBIUS_HOST_DEVICE int32_t tile_count(int32_t extent, int32_t tile) {
  return (extent + tile - 1) / tile;
}

// Tiles of a group with so many rows.
MOEBIUS_HOST_DEVICE int32_t tiles_of_group(const GroupedTiles& t, int32_t group_rows) {
  return tile_count(t.ragged_sum ? t.rows : group_rows, t.tile.rows) * tile_count(t.columns, t.tile.columns);
}

// `starts` (G + 1): number of the first tile of each group, then of all tiles. `group`: at or before the
// tile's group; the search moves on from it. `number` must be below starts[G].
MOEBIUS_HOST_DEVICE TilePlace tile_at(const GroupedTiles& t, const int32_t* starts, int32_t number,
                                      int32_t group) {
  while (number >= starts[group + 1]) ++group;
  const int32_t local = number - starts[group], column_tiles = tile_count(t.columns, t.tile.columns);
  if (!t.rows_first) return {group, local / column_tiles, local % column_tiles};
  const int32_t row_tiles = (starts[group + 1] - starts[group]) / column_tiles;
  return {group, local % row_tiles, local / row_tiles};
}

// How a product gets its rows.
enum class RowSource : uint8_t { as_they_are, gathered, gathered_to_sum };

// How long a variant takes for one product, against others: columns that are computed and thrown away, and
// what two warpgroups on one tile (`pingpong` false) lose while results are written, which is less the more
// is summed; gathered rows are read less often by the wider tile. Constants from
// docs/benchmarks/gpu-kernel-notes.md. `sum`: summed extent; for weight gradients the mean rows of a group.
inline double relative_time(int32_t tile_columns, bool pingpong, int64_t columns, double sum,
                            RowSource source) {
  const auto tiles = static_cast<double>((columns + tile_columns - 1) / tile_columns);
  const double padded = tiles * tile_columns / static_cast<double>(columns);
  if (pingpong) return padded;
  const double reading = source == RowSource::as_they_are ? 1.0 : source == RowSource::gathered ? 0.96 : 0.86;
  return padded * (1.01 + 70.0 / (sum < 70.0 ? 70.0 : sum)) * reading;
}

}  // namespace moebius::kernels::cuda
