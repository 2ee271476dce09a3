#include "kernels/cuda/grouped_tiles.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace moebius::kernels::cuda {
namespace {

// starts as the kernel makes them.
std::vector<int32_t> starts_of(const GroupedTiles& tiles, const std::vector<int32_t>& group_rows) {
  std::vector<int32_t> starts{0};
  for (const int32_t rows : group_rows) starts.push_back(starts.back() + tiles_of_group(tiles, rows));
  return starts;
}

// Every tile of every group once, whatever the block it falls to. Of a pair, at most the second tile may lie
// outside, and the two have the same rows or the same columns.
void expect_cover(const GroupedTiles& tiles, const std::vector<int32_t>& group_rows, int32_t blocks) {
  const std::vector<int32_t> starts = starts_of(tiles, group_rows);
  const int32_t columns = tile_count(tiles.columns, tiles.tile.columns);
  const auto row_tiles = [&](int32_t group) {
    return tile_count(tiles.ragged_sum ? tiles.rows : group_rows[static_cast<size_t>(group)],
                      tiles.tile.rows);
  };
  std::set<std::tuple<int32_t, int32_t, int32_t>> seen;
  for (int32_t block = 0; block < blocks; ++block) {
    int32_t group = 0;
    for (int32_t number = block; number < starts.back(); number += blocks) {
      const TilePlace place = tile_at(tiles, starts.data(), number, group);
      EXPECT_GE(place.group, group);
      group = place.group;
      EXPECT_TRUE(seen.emplace(place.group, place.row_tile, place.column_tile).second);
      if (!tiles.pairs) continue;
      const TilePlace other = tile_at(tiles, starts.data(), number, group, 1);
      EXPECT_EQ(other.group, group);
      EXPECT_EQ(other.same_columns, place.same_columns);
      EXPECT_EQ(other.row_tile, place.row_tile + place.same_columns);
      EXPECT_EQ(other.column_tile, place.column_tile + !place.same_columns);
      if (other.row_tile < row_tiles(group) && other.column_tile < columns) {
        EXPECT_TRUE(seen.emplace(group, other.row_tile, other.column_tile).second);
      }
    }
  }
  size_t expected = 0;
  for (size_t g = 0; g < group_rows.size(); ++g) {
    const auto group = static_cast<int32_t>(g);
    const int32_t rows = row_tiles(group);
    expected += static_cast<size_t>(rows * columns);
    for (int32_t r = 0; r < rows; ++r)
      for (int32_t c = 0; c < columns; ++c) EXPECT_TRUE(seen.contains({group, r, c}));
  }
  EXPECT_EQ(seen.size(), expected);
}

TEST(GroupedTiles, cover_ragged_rows) {
  const std::vector<std::vector<int32_t>> sizes = {
      {}, {0}, {1}, {0, 0, 5, 0}, {128, 129, 1, 0, 4000, 127}, {256, 257, 640, 0, 383}};
  for (const bool pairs : {false, true})
    for (const bool rows_first : {false, true})
      for (const auto& rows : sizes)
        for (const int32_t columns : {100, 384, 1000})
          for (const int32_t blocks : {1, 7, 132})
            expect_cover({{128, 192}, false, 0, columns, rows_first, pairs}, rows, blocks);
}

TEST(GroupedTiles, cover_the_outputs_of_empty_groups_when_rows_are_summed) {
  for (const bool pairs : {false, true})
    for (const bool rows_first : {false, true})
      expect_cover({{128, 256}, true, 300, 520, rows_first, pairs}, {0, 17, 0, 900}, 132);
}

TEST(GroupedTiles, pairs_compute_nothing_in_vain_when_columns_have_an_even_number_of_tiles) {
  const GroupedTiles tiles{{128, 256}, false, 0, 1024, false, true};
  for (int32_t row_tiles = 0; row_tiles < 9; ++row_tiles)
    EXPECT_EQ(2 * tiles_of_group(tiles, 128 * row_tiles), 4 * row_tiles);
}

TEST(GroupedTiles, neighbours_share_columns_when_rows_go_first) {
  const GroupedTiles tiles{{128, 192}, false, 0, 400, true, false};
  const std::vector<int32_t> starts = starts_of(tiles, {300});
  const TilePlace first = tile_at(tiles, starts.data(), 0, 0), second = tile_at(tiles, starts.data(), 1, 0);
  EXPECT_EQ(first.column_tile, second.column_tile);
  EXPECT_NE(first.row_tile, second.row_tile);
}

// The fastest by relative_time: 192 or 256, and "p" for pairs.
std::string chosen(bool sums_rows, GatheredOperand gathered, int64_t columns, double sum, double mean_rows,
                   bool activates = false) {
  std::string best;
  double least = 1e9;
  for (const int32_t tile : {192, 256}) {
    for (const bool pairs : {false, true}) {
      if (pairs && gathered == GatheredOperand::columns) continue;
      const double time = relative_time({tile, tile == 192, pairs},
                                        {sums_rows, gathered, columns, sum, mean_rows, activates});
      if (time >= least) continue;
      least = time;
      best = std::to_string(tile) + (pairs ? "p" : "");
    }
  }
  return best;
}

// What was fastest on an H200, or within a percent or two of it, for layers of 1536/256, 2048/768, 4096/1024
// and 4096/14336.
TEST(GroupedTiles, the_variant_is_the_one_measured_to_be_fastest) {
  constexpr auto kNone = GatheredOperand::none, kRows = GatheredOperand::rows,
                 kColumns = GatheredOperand::columns;
  const auto rows = [](GatheredOperand gathered, int64_t columns, double sum, double mean_rows,
                       bool activates = false) {
    return chosen(false, gathered, columns, sum, mean_rows, activates);
  };
  EXPECT_EQ(rows(kRows, 512, 1536, 1536, true), "256p");
  EXPECT_EQ(rows(kNone, 1536, 256, 1536), "192");
  EXPECT_EQ(rows(kRows, 256, 1536, 1536), "256");  // one column of tiles: pairs compute half a pair in vain
  EXPECT_EQ(rows(kNone, 1536, 512, 1536), "192");
  EXPECT_EQ(rows(kRows, 1536, 2048, 512, true), "192p");
  EXPECT_EQ(rows(kRows, 1536, 2048, 512), "256p");
  EXPECT_EQ(rows(kNone, 2048, 768, 512), "192");
  EXPECT_EQ(rows(kNone, 2048, 1536, 512), "256p");
  EXPECT_EQ(rows(kRows, 2048, 4096, 2048, true), "256p");
  EXPECT_EQ(rows(kNone, 4096, 2048, 2048), "256p");
  EXPECT_EQ(rows(kNone, 28672, 4096, 2048), "192");
  EXPECT_EQ(rows(kNone, 14336, 4096, 2048), "192");
  EXPECT_EQ(rows(kNone, 4096, 28672, 2048), "256p");
  const auto sums = [](GatheredOperand gathered, int64_t columns, double sum) {
    return chosen(true, gathered, columns, sum, 2048);
  };
  EXPECT_EQ(sums(kRows, 256, 1536), "256p");
  EXPECT_EQ(sums(kNone, 768, 512), "192");
  EXPECT_EQ(sums(kColumns, 2048, 512), "192");
  EXPECT_EQ(sums(kColumns, 2048, 2048), "256");
  EXPECT_EQ(sums(kColumns, 1536, 1536), "192");
  EXPECT_EQ(sums(kRows, 1024, 2048), "256p");
  EXPECT_EQ(sums(kColumns, 4096, 2048), "256");
  EXPECT_EQ(sums(kNone, 14336, 2048), "192");
  EXPECT_EQ(sums(kNone, 4096, 2048), "256");
}

}  // namespace
}  // namespace moebius::kernels::cuda
