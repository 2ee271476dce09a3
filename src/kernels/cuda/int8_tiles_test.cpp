#include "kernels/cuda/int8_tiles.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace moebius::kernels::cuda {
namespace {

constexpr int kMultiprocessors = 132;

struct NamedTile {
  std::string name;
  Int8Tile tile;
};
const std::vector<NamedTile> kTiles = {{"128x192", {128, 192, true, 1}},
                                       {"128x256", {128, 256, false, 1}},
                                       {"64x128", {64, 128, true, 1}},
                                       {"64x64", {64, 64, true, 1}},
                                       {"64x32", {64, 32, true, 1}}};

std::string fastest(const Int8Sizes& size) {
  std::string name;
  double least = std::numeric_limits<double>::infinity();
  for (const NamedTile& each : kTiles) {
    const double cycles = int8_cycles(each.tile, size, kMultiprocessors);
    EXPECT_GT(cycles, 0.0) << each.name;
    if (cycles >= least) continue;
    least = cycles;
    name = each.name;
  }
  return name;
}

TEST(Int8Tiles, few_rows_of_one_matrix_get_narrow_tiles) {
  for (const double rows : {1.0, 16.0, 64.0}) EXPECT_EQ(fastest({rows, 1, 4096, 4096}), "64x64") << rows;
}

TEST(Int8Tiles, many_rows_get_large_tiles) {
  for (const double rows : {4096.0, 65536.0}) {
    const std::string name = fastest({rows, 1, 4096, 4096});
    EXPECT_TRUE(name == "128x192" || name == "128x256") << name;
  }
  const std::string grouped = fastest({65536, 128, 1536, 2048});
  EXPECT_TRUE(grouped == "128x192" || grouped == "128x256") << grouped;
}

TEST(Int8Tiles, groups_of_few_rows_do_not_compute_tiles_of_many) {
  const std::string name = fastest({512, 128, 1536, 2048});
  EXPECT_TRUE(name == "64x128" || name == "64x32") << name;
}

TEST(Int8Tiles, pairs_read_less_and_may_compute_columns_for_nothing) {
  const Int8Tile alone{128, 128, true, 1}, pairs{128, 128, true, 2};
  EXPECT_LT(int8_cycles(pairs, {65536, 8, 28672, 4096}, kMultiprocessors),
            int8_cycles(alone, {65536, 8, 28672, 4096}, kMultiprocessors));
  EXPECT_GT(int8_cycles(pairs, {65536, 8, 128, 4096}, kMultiprocessors),
            int8_cycles(alone, {65536, 8, 128, 4096}, kMultiprocessors));
}

}  // namespace
}  // namespace moebius::kernels::cuda
