#include "kernels/cuda/grouped_tiles.h"

#include <gtest/gtest.h>

#include <set>
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

// Every tile of every group once, whatever the block it falls to.
void expect_cover(const GroupedTiles& tiles, const std::vector<int32_t>& group_rows, int32_t blocks) {
  const std::vector<int32_t> starts = starts_of(tiles, group_rows);
  std::set<std::tuple<int32_t, int32_t, int32_t>> seen;
  for (int32_t block = 0; block < blocks; ++block) {
    int32_t group = 0;
    for (int32_t number = block; number < starts.back(); number += blocks) {
      const TilePlace place = tile_at(tiles, starts.data(), number, group);
      EXPECT_GE(place.group, group);
      group = place.group;
      EXPECT_TRUE(seen.emplace(place.group, place.row_tile, place.column_tile).second);
    }
  }
  size_t expected = 0;
  for (size_t g = 0; g < group_rows.size(); ++g) {
    const int32_t rows = tile_count(tiles.ragged_sum ? tiles.rows : group_rows[g], tiles.tile.rows);
    const int32_t columns = tile_count(tiles.columns, tiles.tile.columns);
    expected += static_cast<size_t>(rows * columns);
    for (int32_t r = 0; r < rows; ++r)
      for (int32_t c = 0; c < columns; ++c) EXPECT_TRUE(seen.contains({static_cast<int32_t>(g), r, c}));
  }
  EXPECT_EQ(seen.size(), expected);
}

TEST(GroupedTiles, cover_ragged_rows) {
  const std::vector<std::vector<int32_t>> sizes = {{}, {0}, {1}, {0, 0, 5, 0}, {128, 129, 1, 0, 4000, 127}};
  for (const bool rows_first : {false, true})
    for (const auto& rows : sizes)
      for (const int32_t blocks : {1, 7, 132})
        expect_cover({{128, 192}, false, 0, 1000, rows_first}, rows, blocks);
}

TEST(GroupedTiles, cover_the_outputs_of_empty_groups_when_rows_are_summed) {
  for (const bool rows_first : {false, true})
    expect_cover({{128, 256}, true, 300, 520, rows_first}, {0, 17, 0, 900}, 132);
}

TEST(GroupedTiles, neighbours_share_columns_when_rows_go_first) {
  const GroupedTiles tiles{{128, 192}, false, 0, 400, true};
  const std::vector<int32_t> starts = starts_of(tiles, {300});
  const TilePlace first = tile_at(tiles, starts.data(), 0, 0), second = tile_at(tiles, starts.data(), 1, 0);
  EXPECT_EQ(first.column_tile, second.column_tile);
  EXPECT_NE(first.row_tile, second.row_tile);
}

TEST(GroupedTiles, the_wide_tile_is_chosen_where_the_narrow_one_computes_for_nothing) {
  const auto wide_wins = [](int64_t columns, double sum, RowSource source = RowSource::as_they_are) {
    return relative_time(256, false, columns, sum, source) < relative_time(192, true, columns, sum, source);
  };
  EXPECT_TRUE(wide_wins(256, 1536));
  EXPECT_TRUE(wide_wins(512, 1536));
  EXPECT_TRUE(wide_wins(1024, 2048));
  EXPECT_FALSE(wide_wins(768, 2048));
  EXPECT_FALSE(wide_wins(2048, 2048));
  EXPECT_FALSE(wide_wins(1536, 256));
  EXPECT_FALSE(wide_wins(1536, 2048, RowSource::gathered));
  EXPECT_TRUE(wide_wins(2048, 4096, RowSource::gathered));
  EXPECT_TRUE(wide_wins(4096, 28672));
  EXPECT_TRUE(wide_wins(1536, 1536, RowSource::gathered_to_sum));
}

}  // namespace
}  // namespace moebius::kernels::cuda
