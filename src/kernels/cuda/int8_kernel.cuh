// The integer product on Hopper, one template for dense and grouped, from one row up: the persistent,
// warp-specialised form of grouped_kernel.cuh with signed bytes (a stage has as many bytes, twice the depth)
// and 32-bit sums. Besides that one's tiles it has tiles of 64 rows and few columns for few rows, pairs of
// blocks that share the rows of two neighbouring column tiles (by multicast of the copy engine), since at
// twice the rate of bf16 the second-level cache limits tiles that are copied by each block alone, and
// activations of two digits: the two 64-row parts of a warpgroup then are the two digits of the same rows.
// Rows are not gathered here: a form that did was 10 to 25 % slower than this one, and copying codes is
// cheaper than that (docs/benchmarks/gpu-kernel-notes.md).
#pragma once

#include <cuda_bf16.h>

#include "kernels/api/int8_gemm.h"
#include "kernels/cuda/geometry.h"
#include "kernels/cuda/grouped_kernel.cuh"
#include "kernels/cuda/grouped_tiles.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/int8_tiles.h"
#include "kernels/cuda/vector.cuh"

namespace moebius::kernels::cuda {

// What the kernel writes.
enum class Int8Output : uint8_t { bf16, f32, sums };

struct Int8KernelParams {
  CUtensorMap a, b;  // bytes: (digits, rows, stride), (groups, padded n, padded k)
  GroupedTiles tiles;
  int32_t most_tiles;      // of a cluster; at most so many there are
  int32_t copied;          // bytes that the copy engine brings to a stage of a block
  bool spread;             // blocks begin their sums at different places (see copy_int8_tiles)
  const int32_t* offsets;  // (G + 1); null: one group of num_rows
  int32_t num_groups, num_rows;
  int32_t sum;  // padded k
  int32_t n, padded_n;
  const float* a_scales;  // (digits, num_a_rows)
  const float* b_scales;  // (G, padded n)
  const float* bias;      // (G, n) or null
  int32_t num_a_rows;
  const int32_t* scale_index;  // the scale of row r is that of row scale_index[r] / divisor; null: of row r
  FastDivisor divisor;
  Int8Output output;
  bool whole;     // bf16 without bias, rows of the outputs are multiples of 16 bytes, aligned
  void* out;      // (R, n) of `output`'s type; with SwiGLU (R, n / 2)
  void* gate_up;  // with SwiGLU: (R, n) bf16, or null
};

// A block is three warpgroups: one copies, two multiply (`PINGPONG`: each its own tile, in turns; else 64
// rows each of one).
template <int ROWS, int COLUMNS, bool PINGPONG, bool SWIGLU, int DIGITS = 1, int BLOCKS = 1>
struct Int8Kernel {
  static constexpr int kRows = ROWS, kColumns = COLUMNS, kDepth = 128, kDigits = DIGITS;
  static constexpr bool kPingpong = PINGPONG, kSwiglu = SWIGLU;
  static constexpr int kBlocks = BLOCKS;  // of a cluster
  static constexpr int kBytesA = ROWS * DIGITS * kDepth, kBytesB = COLUMNS * kDepth,
                       kStageBytes = kBytesA + kBytesB;
  static constexpr int kStagingBytes = 8 * 2048;  // a chunk of 16 rows of 128 bytes for each multiplying warp
  static constexpr int kFit = (232448 - 1024 - kStagingBytes - 256 - 6144) / kStageBytes;
  static constexpr int kStages = kFit < 16 ? kFit : 16;
  static constexpr int kPlaces = 32;  // as in grouped_kernel.cuh
  static_assert(kPlaces > kStages);
  static constexpr int kMaxGroups = (6144 - 16 * kPlaces) / 4 - 2;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + kStagingBytes + 256 + 6144;
  static constexpr int kParts = PINGPONG ? ROWS * DIGITS / 64 : 1;  // of 64 rows, in a warpgroup
  static constexpr int kThreads = 384;
  static constexpr int kConsumerArrivals = (PINGPONG ? 4 : 8) * kBlocks;
  static_assert(PINGPONG ? (DIGITS == 1 || ROWS == 64) : (ROWS == 128 && DIGITS == 1));
  static_assert(kStages >= 4);
  static_assert(BLOCKS == 1 || (BLOCKS == 2 && DIGITS == 1));
};

template <class K>
struct Int8Block {
  const Int8KernelParams& p;
  uint32_t stages, staging, full, empty, places;  // addresses in shared memory
  const int32_t* starts;                          // (G + 1), shared
  int32_t first, step, count;                     // tiles of this block's cluster
  int32_t rank;                                   // in the cluster

  __device__ __forceinline__ uint32_t stage_a(int stage) const { return stages + stage * K::kStageBytes; }
  __device__ __forceinline__ uint32_t stage_b(int stage) const { return stage_a(stage) + K::kBytesA; }
  __device__ __forceinline__ RowRange rows_of(int32_t group) const {
    if (p.offsets == nullptr) return {0, p.num_rows};
    return {__ldg(p.offsets + group), __ldg(p.offsets + group + 1)};
  }
  __device__ __forceinline__ int32_t depth() const { return (p.sum + K::kDepth - 1) / K::kDepth; }
  // Of this block's part of a tile.
  __device__ __forceinline__ ResultPlace place_of(const TilePlace& tile) const {
    const RowRange rows = rows_of(tile.group);
    const int32_t row = tile.row_tile * K::kRows;
    return {rows.begin + row, rows.end - rows.begin - row,
            (K::kBlocks * tile.column_tile + rank) * K::kColumns, tile.group};
  }
};

// The rows and the weights of a stage through the copy engine. Of the rows that a cluster shares each block
// brings its part, to all.
template <class K>
__device__ __forceinline__ void copy_int8_rows(const Int8Block<K>& b, int stage, int32_t row, int32_t depth) {
  const uint32_t to = b.stage_a(stage), full = b.full + 8 * stage;
  if constexpr (K::kBlocks > 1) {
    constexpr int kPart = K::kRows / K::kBlocks;
    constexpr uint16_t kAll = (1 << K::kBlocks) - 1;
    copy_box_to(to + b.rank * kPart * K::kDepth, &b.p.a, full, depth, row + b.rank * kPart, 0, kAll);
  } else {
#pragma unroll
    for (int digit = 0; digit < K::kDigits; ++digit)
      copy_box(to + digit * K::kRows * K::kDepth, &b.p.a, full, depth, row, digit);
  }
}
template <class K>
__device__ __forceinline__ void copy_int8_weights(const Int8Block<K>& b, int stage, int32_t group,
                                                  int32_t column, int32_t depth) {
  const uint32_t full = b.full + 8 * stage;
  barrier_expect(full, b.p.copied);
  copy_box(b.stage_b(stage), &b.p.b, full, depth, column, group);
}

// One warp, of which lane 0 starts the copies. The weights of the first stages are asked for while the kernel
// before, which makes the codes of the rows, still runs; a tile is looked for when the one before it has
// begun.
template <class K>
__device__ __forceinline__ void copy_int8_tiles(const Int8Block<K>& b, int lane) {
  Ring<K> ring;
  int32_t slot = 0;
  const int32_t depth = b.depth();
  const auto place_at = [&](int32_t number, int32_t group) {
    return b.place_of(tile_at(b.p.tiles, b.starts, number, group));
  };
  ResultPlace ahead{};
  if (b.first < b.count) ahead = place_at(b.first, 0);
  for (int32_t number = b.first; number < b.count; number += b.step) {
    const ResultPlace place = ahead;
    // Where the sum begins: with few rows all blocks walk in step, and would ask for places a whole number of
    // rows apart, which few slices of the second-level cache have. Sums of integers do not depend on it.
    const int32_t start = b.p.spread ? number % depth : 0;
    const auto summed = [&](int32_t d) {
      const int32_t at = start + d;
      return (at < depth ? at : at - depth) * K::kDepth;
    };
    const auto begin = [&](int32_t d, int stage) {
      if (d == 0) tell_place(b.places, slot, place);
      copy_int8_weights(b, stage, place.group, place.column, summed(d));
    };
    const int32_t early = number == b.first ? min(depth, static_cast<int32_t>(K::kStages)) : 0;
    if (number == b.first) {
      if (lane == 0)
        for (int32_t d = 0; d < early; ++d) begin(d, d);
      wait_for_kernel_before();
    }
    for (int32_t d = 0; d < depth; ++d, ring.next()) {
      barrier_wait(b.empty + 8 * ring.stage, ring.parity ^ 1);
      if (lane == 0) {
        if (d >= early) begin(d, ring.stage);
        copy_int8_rows(b, ring.stage, place.first_row, summed(d));
      }
      __syncwarp();
      if (d == 0 && number + b.step < b.count) ahead = place_at(number + b.step, place.group);
    }
    slot = (slot + 1) % K::kPlaces;
  }
}

}  // namespace moebius::kernels::cuda
