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

template <GroupedGemmKind KIND, Epilogue EPILOGUE, int COLUMNS, bool PINGPONG, Gather GATHER>
struct GroupedKernel {
  static constexpr GroupedGemmKind kKind = KIND;
  static constexpr Epilogue kEpilogue = EPILOGUE;
  static constexpr Gather kGather = GATHER;
  static constexpr bool kPingpong = PINGPONG;
  static constexpr int kRows = 128, kColumns = COLUMNS, kDepth = 64;  // of a tile; kDepth: summed per stage
  static constexpr bool kRaggedSum = KIND == GroupedGemmKind::weight_grad;
  static constexpr int kTransA = kRaggedSum ? 1 : 0, kTransB = KIND == GroupedGemmKind::forward ? 0 : 1;
  static constexpr int kBytesA = kRows * kDepth * 2, kBytesB = COLUMNS * kDepth * 2,
                       kStageBytes = kBytesA + kBytesB;
  static constexpr int kStagingBytes = 8 * 2048;  // a chunk of 16 rows of 128 bytes for each multiplying warp
  static constexpr int kStages = (232448 - 1024 - kStagingBytes - 256 - 6144) / kStageBytes;
  static constexpr int kMaxGroups = 6144 / 4 - 2;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + kStagingBytes + 256 + 6144;
  static constexpr int kHalves = PINGPONG ? 2 : 1;  // 64-row parts of a warpgroup
  static constexpr int kThreads = 384;
  // Stages whose gathered rows may be under way; so many fewer are ready. At most kStages - 2: the
  // multiplying side gives a stage back when it has begun the next.
  static constexpr int kLag = 2;
  static constexpr int kConsumerArrivals = PINGPONG ? 4 : 8;
  // Bytes that the copy engine brings to a stage of one block.
  static constexpr int kCopied = (GATHER == Gather::a ? 0 : kBytesA) + (GATHER == Gather::b ? 0 : kBytesB);
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
  return {uniform(tile.group), uniform(tile.row_tile), uniform(tile.column_tile)};
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

template <class K>
struct Block {
  const GroupedKernelParams& p;
  uint32_t stages, staging, full, empty;  // addresses in shared memory
  const int32_t* starts;                  // (G + 1), shared
  int32_t first, step, count;             // tiles of this block

  __device__ __forceinline__ uint32_t stage_a(int stage) const { return stages + stage * K::kStageBytes; }
  __device__ __forceinline__ uint32_t stage_b(int stage) const { return stage_a(stage) + K::kBytesA; }
  __device__ __forceinline__ RowRange rows_of(int32_t group) const {
    return {__ldg(p.offsets + group), __ldg(p.offsets + group + 1)};
  }
  // Stages that a tile of the group takes.
  __device__ __forceinline__ int32_t depth_of(const RowRange& rows) const {
    return ((K::kRaggedSum ? rows.end - rows.begin : p.sum) + K::kDepth - 1) / K::kDepth;
  }
};

// One stage through the copy engine. Operands whose contiguous dim is the summed one come as one box of rows;
// the others as boxes of 64 columns.
template <class K>
__device__ __forceinline__ void copy_stage(const Block<K>& b, int stage, uint32_t full, const RowRange& rows,
                                           int32_t group, int32_t row, int32_t column, int32_t depth) {
  if constexpr (K::kGather != Gather::a) {
    const uint32_t to = b.stage_a(stage);
    if constexpr (K::kTransA == 0) {
      copy_box(to, &b.p.a, full, depth, rows.begin + row, 0);
    } else {
#pragma unroll
      for (int i = 0; i < K::kRows / 64; ++i)
        copy_box(to + i * 8192, &b.p.a, full, row + i * 64, rows.begin + depth, 0);
    }
  }
  if constexpr (K::kGather != Gather::b) {
    const uint32_t to = b.stage_b(stage);
    if constexpr (K::kTransB == 0) {
      copy_box(to, &b.p.b, full, depth, column, group);
    } else {
#pragma unroll
      for (int i = 0; i < K::kColumns / 64; ++i)
        copy_box(to + i * 8192, &b.p.b, full, column + i * 64, K::kRaggedSum ? rows.begin + depth : depth,
                 K::kRaggedSum ? 0 : group);
    }
  }
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

// One warp, of which lane 0 starts the copies.
template <class K>
__device__ __forceinline__ void copy_tiles(const Block<K>& b, int lane) {
  Ring<K> ring;
  int32_t group = 0;
  for (int32_t number = b.first; number < b.count; number += b.step) {
    const TilePlace tile = tile_at(b.p.tiles, b.starts, number, group);
    group = tile.group;
    const RowRange rows = b.rows_of(group);
    const int32_t row = tile.row_tile * K::kRows, column = tile.column_tile * K::kColumns;
    const int32_t depth = b.depth_of(rows);
    for (int32_t d = 0; d < depth; ++d, ring.next()) {
      barrier_wait(b.empty + 8 * ring.stage, ring.parity ^ 1);
      if (lane == 0) {
        const uint32_t full = b.full + 8 * ring.stage;
        barrier_expect(full, K::kCopied);
        copy_stage(b, ring.stage, full, rows, group, row, column, d * K::kDepth);
      }
      __syncwarp();
    }
  }
}

// Where the gathered operand comes in by its rows: 128 threads, a 16-byte chunk of a 128-byte row each. What
// they write must pass a fence before the matrix instructions read it. For rows of the tile the copying
// threads wait for their copies and fence (the multiplying side loses nothing); for summed rows, where more
// copies must be under way than that allows, the copies arrive by themselves and the multiplying side fences.
// (Measured: docs/benchmarks/gpu-kernel-notes.md)
template <class K>
__device__ __forceinline__ void gather_tiles(const Block<K>& b, int thread) {
  constexpr int kPasses = K::kRaggedSum ? 4 : 8;  // rows per thread: 64 summed rows, or 128 rows of the tile
  constexpr int kColumnBlocks = !K::kRaggedSum ? 1 : (K::kGather == Gather::a ? K::kRows : K::kColumns) / 64;
  Ring<K> ring, landed;
  int32_t group = 0, issued = 0;
  const int chunk = thread % 8, first_row = thread / 8;
  const uint32_t within = first_row * 128 + ((chunk ^ (first_row % 8)) * 16);
  // Volatile, or the compiler moves the loads down to their use.
  const auto index_of = [&](int32_t row, int32_t end) {
    int32_t slot = -1;
    asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %2, %3;\n@p ld.global.nc.b32 %0, [%1];\n}"
                 : "+r"(slot)
                 : "l"(b.p.index + row), "r"(row), "r"(end));
    return slot;
  };
  const auto source = [&](int32_t slot) -> int64_t {  // element offset of the row; -1: none
    return slot < 0 ? -1
                    : static_cast<int64_t>(divide(static_cast<uint32_t>(slot), b.p.divisor)) * b.p.src_width;
  };
  const auto land = [&] {
    fence_async_proxy();
    barrier_arrive(b.full + 8 * landed.stage);
    landed.next();
  };
  for (int32_t number = b.first; number < b.count; number += b.step) {
    const TilePlace tile = tile_at(b.p.tiles, b.starts, number, group);
    group = tile.group;
    const RowRange rows = b.rows_of(group);
    const int32_t row = tile.row_tile * K::kRows, column = tile.column_tile * K::kColumns;
    const int32_t depth = b.depth_of(rows);
    // Rows of the tile are the same in all stages; summed rows are fetched two stages ahead.
    int64_t from[kPasses];
    int32_t ahead[2][kPasses];
    const auto fetch = [&](int32_t d, int32_t(&slots)[kPasses]) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i)
        slots[i] =
            index_of(rows.begin + (K::kRaggedSum ? d * K::kDepth : row) + first_row + 16 * i, rows.end);
    };
    fetch(0, ahead[0]);
    if constexpr (K::kRaggedSum) fetch(1, ahead[1]);
#pragma unroll
    for (int i = 0; i < kPasses; ++i) from[i] = source(ahead[0][i]);
    for (int32_t d = 0; d < depth; ++d, ring.next()) {
      barrier_wait(b.empty + 8 * ring.stage, ring.parity ^ 1);
      if (thread == 0) {
        const uint32_t full = b.full + 8 * ring.stage;
        barrier_expect(full, K::kCopied);
        copy_stage(b, ring.stage, full, rows, group, row, column, d * K::kDepth);
      }
      const uint32_t to = (K::kGather == Gather::a ? b.stage_a(ring.stage) : b.stage_b(ring.stage)) + within;
      const int32_t start = K::kRaggedSum ? (K::kGather == Gather::a ? row : column) : d * K::kDepth;
#pragma unroll
      for (int j = 0; j < kColumnBlocks; ++j) {
        const int32_t element = start + j * 64 + chunk * 8;
        const bool inside = element < b.p.src_width;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
          const bool present = inside && from[i] >= 0;
          copy_chunk(to + j * 8192 + i * 2048, b.p.src + (present ? from[i] + element : 0), present);
        }
      }
      if constexpr (K::kRaggedSum) {
        barrier_arrive_after_copies(b.full + 8 * ring.stage);
      } else {
        copy_commit();
        if (issued >= K::kLag) {
          copy_wait<K::kLag>();
          land();
        }
        ++issued;
      }
      if constexpr (K::kRaggedSum) {
#pragma unroll
        for (int i = 0; i < kPasses; ++i) from[i] = source(ahead[1][i]);
        fetch(d + 2, ahead[1]);
      }
    }
  }
  if constexpr (!K::kRaggedSum) {
    copy_wait<0>();
    for (int i = 0; i < (issued < K::kLag ? issued : K::kLag); ++i) land();
  }
}

// Rows [valid, 64) of a stage become zero in both operands.
template <class K>
__device__ __forceinline__ void zero_rows(uint32_t stage, int valid, int thread, int threads) {
  constexpr int kBlocks = (K::kRows + K::kColumns) / 64;
  const int chunks = (64 - valid) * 8;
  for (int i = thread; i < kBlocks * chunks; i += threads) {
    const uint32_t at = stage + (i / chunks) * 8192 + valid * 128 + (i % chunks) * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  fence_async_proxy();
}

}  // namespace moebius::kernels::cuda
