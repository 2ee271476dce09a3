#include "kernels/cuda/geometry.h"

#include <gtest/gtest.h>

#include <random>

namespace moebius::kernels::cuda {
namespace {

const void* address(uintptr_t value) {
  return reinterpret_cast<const void*>(value);
}

TEST(CudaGeometry, accesses_are_sixteen_bytes_when_everything_is_aligned) {
  EXPECT_EQ(vector_elements(2048, 2, {address(256), nullptr}), 8);
  EXPECT_EQ(vector_elements(2048, 4, {address(512)}), 4);
  EXPECT_EQ(vector_elements(2047, 2, {address(256)}), 1);
  EXPECT_EQ(vector_elements(2048, 2, {address(256), address(258)}), 1);
}

TEST(CudaGeometry, rows_are_covered_and_blocks_are_legal) {
  for (const int most : {1, 2, 4}) {
    for (const int most_threads : {256, 512, 1024}) {
      for (int64_t chunks = 1; chunks < 9000; chunks = chunks * 5 / 4 + 1) {
        const RowShape shape = row_shape(chunks, most, most_threads);
        EXPECT_GE(shape.threads_per_row, 32);
        EXPECT_LE(shape.threads_per_row, most_threads);
        EXPECT_EQ(shape.threads_per_row & (shape.threads_per_row - 1), 0);
        EXPECT_LE(shape.threads_per_row * shape.rows_per_block, 1024);
        EXPECT_LE(shape.rows_per_block, 8);
        EXPECT_LE(shape.chunks_per_thread, most);
        if (shape.chunks_per_thread == 0) {
          EXPECT_EQ(shape.threads_per_row, most_threads);
          EXPECT_GT(chunks, int64_t{most} * most_threads);
        } else {
          EXPECT_GE(int64_t{shape.chunks_per_thread} * shape.threads_per_row, chunks);
        }
      }
    }
  }
}

TEST(CudaGeometry, usual_widths_keep_their_rows_in_registers) {
  EXPECT_EQ(row_shape(2048 / 8, 4, 1024).threads_per_row, 64);
  EXPECT_EQ(row_shape(2048 / 8, 4, 1024).chunks_per_thread, 4);
  EXPECT_EQ(row_shape(8192 / 8, 2, 512).threads_per_row, 512);
}

TEST(CudaGeometry, a_persistent_grid_fills_the_device_but_no_more) {
  EXPECT_EQ(persistent_blocks(1000000, 132, 4), 528);
  EXPECT_EQ(persistent_blocks(7, 132, 4), 7);
  EXPECT_EQ(persistent_blocks(0, 132, 4), 1);
}

TEST(CudaGeometry, rope_covers_every_head_with_lanes_that_divide_a_warp) {
  for (const int64_t heads : {2, 6, 20, 32, 36, 40, 96, 200}) {
    for (const int64_t head_dim : {16, 32, 64, 80, 96, 112, 128, 256}) {
      RopeGeometry geometry{};
      ASSERT_TRUE(rope_geometry(heads, head_dim, 8, &geometry)) << head_dim;
      EXPECT_EQ(32 % geometry.lanes_per_head, 0);
      EXPECT_EQ(head_dim / 2 % geometry.elements, 0);
      EXPECT_GE(geometry.lanes_per_head * geometry.elements, head_dim / 2);
      EXPECT_EQ(geometry.threads % 32, 0);
      EXPECT_LE(geometry.threads * geometry.tokens_per_block, kRopeThreads);
      EXPECT_LE(geometry.tokens_per_block, 8);
      if (geometry.chunks_per_thread > 0) {
        EXPECT_GE(int64_t{geometry.threads} * geometry.chunks_per_thread, heads * geometry.lanes_per_head);
      }
    }
  }
}

TEST(CudaGeometry, rope_refuses_heads_that_no_warp_can_hold) {
  RopeGeometry geometry{};
  EXPECT_FALSE(rope_geometry(4, 65, 8, &geometry));
  EXPECT_FALSE(rope_geometry(4, 66, 1, &geometry));
}

TEST(CudaGeometry, sort_tiles_cover_the_slots_with_whole_warps) {
  for (const int64_t slots : {1, 1023, 1024, 1025, 262144, 1048576, 5000001}) {
    const SortTiles tiles = sort_tiles(slots, 132);
    EXPECT_EQ(tiles.slots_per_tile % kSortThreads, 0);
    EXPECT_GE(tiles.count * tiles.slots_per_tile, slots);
    EXPECT_LT((tiles.count - 1) * tiles.slots_per_tile, slots);
    EXPECT_LE(tiles.count, 132);
  }
  EXPECT_EQ(sort_tiles(0, 132).count, 0);
}

TEST(CudaGeometry, statistics_use_all_multiprocessors_for_few_segments) {
  EXPECT_EQ(stats_slices(16384, 1, 132), 132);
  EXPECT_EQ(stats_slices(16384, 4, 132), 33);
  EXPECT_EQ(stats_slices(16384, 500, 132), 1);
  EXPECT_EQ(stats_slices(10, 1, 132), 1);
}

TEST(CudaGeometry, fast_division_is_exact) {
  std::mt19937 random(7);
  const auto quotient = [](uint32_t n, const FastDivisor& by) {
    return by.divisor == 1 ? n : static_cast<uint32_t>((uint64_t{n} * by.multiplier) >> 32) >> by.shift;
  };
  for (const int64_t divisor :
       {1, 2, 3, 5, 6, 7, 8, 96, 128, 1792, 3584, 65535, 65536, 1000003, 2147483647}) {
    const FastDivisor fast = fast_divisor(divisor);
    const auto d = static_cast<uint32_t>(divisor);
    for (const uint32_t n : {0u, 1u, d - 1, d, d + 1 > 0x7fffffffu ? d : d + 1, 0x7fffffffu, 0x7ffffffeu})
      EXPECT_EQ(quotient(n, fast), n / d) << n << " / " << d;
    for (int i = 0; i < 2000; ++i) {
      const uint32_t n = random() & 0x7fffffffu;
      EXPECT_EQ(quotient(n, fast), n / d) << n << " / " << d;
    }
  }
}

}  // namespace
}  // namespace moebius::kernels::cuda
