// The grouped product on Hopper, one template for all forms. A block is three warpgroups: one copies tiles of
// both operands into a ring of stages in shared memory, two multiply. `pingpong`: each of the two works on
// its own 128-row tile, so that one writes its results while the other multiplies; else both share a tile, 64
// rows each. Blocks stay for the whole product and take tiles in the order of grouped_tiles.h. Method: the
// persistent, warp-specialised form of CUTLASS 3.x (pingpong and cooperative), with one tensor map over all
// rows instead of one per group: a tile may read rows of the next group, which are never stored; where rows
// are summed over, the last partial slice is zeroed.
#pragma once

#include <cuda_bf16.h>

#include "kernels/api/grouped_gemm.h"
#include "kernels/cuda/geometry.h"
#include "kernels/cuda/grouped_tiles.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/vector.cuh"

namespace moebius::kernels::cuda {

enum class Epilogue : uint8_t {
  store,   // out
  swiglu,  // act, and out when it is kept
};

struct GroupedKernelParams {
  CUtensorMap a, b;  // made by run_variant in grouped_gemm.cu
  GroupedTiles tiles;
  const int32_t* offsets;  // (G + 1)
  int32_t num_groups;
  int32_t sum;  // summed extent where it is not ragged
  bool accumulate;
  __nv_bfloat16* out;  // rows of tiles.columns
  __nv_bfloat16* act;  // rows of tiles.columns / 2
  // Gathered operand instead of its map: row r is row index[r] / divisor of src.
  const __nv_bfloat16* src;
  const int32_t* index;
  FastDivisor divisor;
  int32_t src_width;
};

enum class Gather : uint8_t { none, a, b };

// PAIRS: two blocks, a cluster, work on two tiles with the same columns or the same rows, and each brings
// half of the operand that they share to both: a third less to read.
template <GroupedGemmKind KIND, Epilogue EPILOGUE, int COLUMNS, bool PINGPONG, Gather GATHER,
          bool PAIRS = false>
struct GroupedKernel {
  static constexpr GroupedGemmKind kKind = KIND;
  static constexpr Epilogue kEpilogue = EPILOGUE;
  static constexpr Gather kGather = GATHER;
  static constexpr bool kPingpong = PINGPONG, kPairs = PAIRS;
  static constexpr int kRows = 128, kColumns = COLUMNS, kDepth = 64;  // of a tile; kDepth: summed per stage
  static constexpr bool kRaggedSum = KIND == GroupedGemmKind::weight_grad;
  // The last stage of summed rows is multiplied no further than its rows go. Not where that costs more than
  // it saves: there blocks must keep in step for what one reads to be in the L2 for the others.
  static constexpr bool kCutsSums = kRaggedSum && !(PINGPONG && GATHER == Gather::none);
  // Where every tile takes as many stages, the multiplying side need not look for its tiles.
  static constexpr bool kTellsPlaces = !kRaggedSum;
  static constexpr int kTransA = kRaggedSum ? 1 : 0, kTransB = KIND == GroupedGemmKind::forward ? 0 : 1;
  static constexpr int kBytesA = kRows * kDepth * 2, kBytesB = COLUMNS * kDepth * 2,
                       kStageBytes = kBytesA + kBytesB;
  static constexpr int kStagingBytes = 8 * 2048;  // a chunk of 16 rows of 128 bytes for each multiplying warp
  static constexpr int kStages = (232448 - 1024 - kStagingBytes - 256 - 6144) / kStageBytes;
  static constexpr int kPlaces = 8;  // of tiles that are told to the multiplying side; more than stages
  static_assert(kPlaces > kStages);
  static constexpr int kMaxGroups = (6144 - 16 * kPlaces) / 4 - 2;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + kStagingBytes + 256 + 6144;
  static constexpr int kHalves = PINGPONG ? 2 : 1;  // 64-row parts of a warpgroup
  static constexpr int kThreads = 384;
  // Stages whose gathered rows may be under way while the one before them is handed over. A stage is handed
  // over when the one kLag further has been begun, which the multiplying side makes room for kStages - kLag
  // stages earlier: it needs three of them not to wait.
  static constexpr int kLag = kStages - 3;
  static constexpr int kConsumerArrivals = (PINGPONG ? 4 : 8) * (PAIRS ? 2 : 1);
  // Bytes that the copy engine brings to a stage of one block.
  static constexpr int kCopied = (GATHER == Gather::a ? 0 : kBytesA) + (GATHER == Gather::b ? 0 : kBytesB);
  // Rows (summed rows where those are not contiguous) of a box that it brings at once. Where two blocks share
  // an operand, each brings half of the rows or every other box.
  static constexpr int kBoxA = kTransA ? kDepth : kRows / (PAIRS ? 2 : 1),
                       kBoxB = kTransB ? kDepth : COLUMNS / (PAIRS ? 2 : 1);
  static_assert(!PAIRS || GATHER != Gather::b, "the gathered operand is the one that a pair would share");
};

// Rows [begin, end) of a group.
struct RowRange {
  int32_t begin, end;
};

// Values that are the same in all lanes, said so that the compiler knows: branches around matrix instructions
// must not look divergent.
__device__ __forceinline__ int32_t uniform(int32_t x) {
  return __shfl_sync(0xffffffffu, x, 0);
}
__device__ __forceinline__ RowRange uniform(const RowRange& rows) {
  return {uniform(rows.begin), uniform(rows.end)};
}
__device__ __forceinline__ TilePlace uniform(const TilePlace& tile) {
  return {uniform(tile.group), uniform(tile.row_tile), uniform(tile.column_tile), tile.same_columns};
}

// starts[g]: tiles of the groups before g, by one warp. rows_of_group(g): how many rows group g has.
template <class RowsOfGroup>
__device__ __forceinline__ void number_tiles(const GroupedTiles& tiles, int32_t num_groups,
                                             const RowsOfGroup& rows_of_group, int32_t* starts, int lane) {
  const int per_lane = (num_groups + 31) / 32;
  const int first = lane * per_lane, last = first + per_lane < num_groups ? first + per_lane : num_groups;
  int32_t own = 0;
  for (int g = first; g < last; ++g) own += tiles_of_group(tiles, rows_of_group(g));
  int32_t sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  int32_t at = sum - own;
  for (int g = first; g < last; ++g) {
    starts[g] = at;
    at += tiles_of_group(tiles, rows_of_group(g));
  }
  if (lane == 31) starts[num_groups] = sum;
}

// What a tile's results need, and what the copying side tells the multiplying side of it through shared
// memory: looking for a tile (its group, a division, offsets) takes a third of the time that short sums take.
struct ResultPlace {
  int32_t first_row, rows;  // of the output; rows that are there from it on
  int32_t column, group;
};
__device__ __forceinline__ void tell_place(uint32_t places, int32_t slot, const ResultPlace& place) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(places + 16 * slot), "r"(place.first_row),
               "r"(place.rows), "r"(place.column), "r"(place.group)
               : "memory");
}
__device__ __forceinline__ ResultPlace told_place(uint32_t places, int32_t slot) {
  ResultPlace place;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(place.first_row), "=r"(place.rows), "=r"(place.column), "=r"(place.group)
               : "r"(places + 16 * slot)
               : "memory");
  return {uniform(place.first_row), uniform(place.rows), uniform(place.column), uniform(place.group)};
}

template <class K>
struct Block {
  const GroupedKernelParams& p;
  uint32_t stages, staging, full, empty, places;  // addresses in shared memory
  const int32_t* starts;                          // (G + 1), shared
  int32_t first, step, count;                     // tiles (pairs) of this block (pair)
  int32_t rank;                                   // in its pair

  __device__ __forceinline__ uint32_t stage_a(int stage) const { return stages + stage * K::kStageBytes; }
  __device__ __forceinline__ uint32_t stage_b(int stage) const { return stage_a(stage) + K::kBytesA; }
  __device__ __forceinline__ RowRange rows_of(int32_t group) const {
    return {__ldg(p.offsets + group), __ldg(p.offsets + group + 1)};
  }
  __device__ __forceinline__ ResultPlace place_of(const TilePlace& tile, const RowRange& rows) const {
    const int32_t row = tile.row_tile * K::kRows;
    if (K::kRaggedSum)
      return {tile.group * p.tiles.rows + row, p.tiles.rows - row, tile.column_tile * K::kColumns,
              tile.group};
    return {rows.begin + row, rows.end - rows.begin - row, tile.column_tile * K::kColumns, tile.group};
  }
  // Stages that a tile of the group takes.
  __device__ __forceinline__ int32_t depth_of(const RowRange& rows) const {
    return ((K::kRaggedSum ? rows.end - rows.begin : p.sum) + K::kDepth - 1) / K::kDepth;
  }
};

// One operand of a stage through the copy engine, from `at` on along the rows or columns of its tile.
// Operands whose contiguous dim is the summed one (TRANS 0) come as boxes of rows; the others as boxes of 64
// columns. `shared`: the other block of the pair wants the same.
template <class K, int EXTENT, int TRANS>
__device__ __forceinline__ void copy_operand(const CUtensorMap* map, uint32_t to, uint32_t full, int32_t rank,
                                             bool shared, int32_t at, int32_t depth, int32_t z) {
  constexpr uint16_t kBoth = 3;
  if constexpr (TRANS != 0) {
#pragma unroll
    for (int i = 0; i < EXTENT / 64; ++i) {
      const uint32_t there = to + i * 8192;
      if (!K::kPairs || !shared) {
        copy_box(there, map, full, at + i * 64, depth, z);
      } else if (i % 2 == rank) {
        copy_box_to(there, map, full, at + i * 64, depth, z, kBoth);
      }
    }
  } else {
    constexpr int kBoxRows = EXTENT / (K::kPairs ? 2 : 1);
    if (K::kPairs && shared) {
      copy_box_to(to + rank * kBoxRows * 128, map, full, depth, at + rank * kBoxRows, z, kBoth);
    } else {
#pragma unroll
      for (int half = 0; half < EXTENT / kBoxRows; ++half)
        copy_box(to + half * kBoxRows * 128, map, full, depth, at + half * kBoxRows, z);
    }
  }
}

template <class K>
__device__ __forceinline__ void copy_stage(const Block<K>& b, int stage, uint32_t full, const RowRange& rows,
                                           const TilePlace& tile, int32_t depth) {
  const int32_t row = tile.row_tile * K::kRows, column = tile.column_tile * K::kColumns;
  if constexpr (K::kGather != Gather::a)
    copy_operand<K, K::kRows, K::kTransA>(&b.p.a, b.stage_a(stage), full, b.rank, !tile.same_columns,
                                          K::kTransA ? row : rows.begin + row,
                                          K::kTransA ? rows.begin + depth : depth, 0);
  if constexpr (K::kGather != Gather::b)
    copy_operand<K, K::kColumns, K::kTransB>(&b.p.b, b.stage_b(stage), full, b.rank, tile.same_columns,
                                             column, K::kRaggedSum ? rows.begin + depth : depth,
                                             K::kRaggedSum ? 0 : tile.group);
}

// The stage at hand, and how often (modulo 2) the ring has been gone round.
template <class K>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == K::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ void skip(int32_t count) {
    const int32_t to = stage + count, turns = to / K::kStages;
    stage = to - turns * K::kStages;
    parity ^= turns & 1;
  }
};

// One warp, of which lane 0 starts the copies. It looks for a tile when it has begun the one before.
template <class K>
__device__ __forceinline__ void copy_tiles(const Block<K>& b, int lane) {
  Ring<K> ring;
  if (b.first >= b.count) return;
  TilePlace ahead = tile_at(b.p.tiles, b.starts, b.first, 0, b.rank);
  RowRange rows_ahead = b.rows_of(ahead.group);
  int32_t slot = 0;
  for (int32_t number = b.first; number < b.count; number += b.step) {
    const TilePlace tile = ahead;
    const RowRange rows = rows_ahead;
    const int32_t depth = b.depth_of(rows), next = number + b.step;
    const auto look_ahead = [&] {
      if (next >= b.count) return;
      ahead = tile_at(b.p.tiles, b.starts, next, tile.group, b.rank);
      rows_ahead = b.rows_of(ahead.group);
    };
    for (int32_t d = 0; d < depth; ++d, ring.next()) {
      barrier_wait(b.empty + 8 * ring.stage, ring.parity ^ 1);
      if (lane == 0) {
        const uint32_t full = b.full + 8 * ring.stage;
        if (K::kTellsPlaces && d == 0) tell_place(b.places, slot, b.place_of(tile, rows));
        barrier_expect(full, K::kCopied);
        copy_stage(b, ring.stage, full, rows, tile, d * K::kDepth);
      }
      __syncwarp();
      if (d == 0) look_ahead();
    }
    if (depth == 0) look_ahead();
    slot = (slot + 1) % K::kPlaces;
  }
}

// Rows [valid, end) of a stage become zero in both operands.
template <class K>
__device__ __forceinline__ void zero_rows(uint32_t stage, int valid, int end, int thread, int threads) {
  constexpr int kBlocks = (K::kRows + K::kColumns) / 64;
  const int chunks = (end - valid) * 8;
  for (int i = thread; i < kBlocks * chunks; i += threads) {
    const uint32_t at = stage + (i / chunks) * 8192 + valid * 128 + (i % chunks) * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  fence_async_proxy();
}

}  // namespace moebius::kernels::cuda
