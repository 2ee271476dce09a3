// The copying side of the grouped product where one operand comes in by its rows (grouped_kernel.cuh): 128
// threads, each a 16-byte chunk of every sixteenth 128-byte row; the other operand comes through the copy
// engine. What the threads write must pass a fence before the matrix instructions read it. For rows of the
// tile the copying threads wait for their copies and fence (the multiplying side loses nothing); for summed
// rows, where more copies must be under way than that allows, the copies arrive by themselves and the
// multiplying side fences. Row numbers are fetched ahead, past the end of a tile, and a copy is one
// instruction: what is absent (rows past the end of the group, columns past the tensor's) is not copied where
// the result does not depend on it. (Measured: docs/benchmarks/gpu-kernel-notes.md)
#pragma once

#include "kernels/cuda/grouped_kernel.cuh"

namespace moebius::kernels::cuda {

// Waits until the stage is free and has the copy engine bring what it brings.
template <class K>
__device__ __forceinline__ void begin_gathered_stage(const Block<K>& b, const Ring<K>& ring, int thread,
                                                     const RowRange& rows, const TilePlace& tile,
                                                     int32_t depth, int32_t slot) {
  barrier_wait(b.empty + 8 * ring.stage, ring.parity ^ 1);
  if (thread != 0) return;
  if (K::kTellsPlaces && depth == 0) tell_place(b.places, slot, b.place_of(tile, rows));
  const uint32_t full = b.full + 8 * ring.stage;
  barrier_expect(full, K::kCopied);
  copy_stage(b, ring.stage, full, rows, tile, depth);
}

// index[row], or 0 from `end` on. Volatile, or the compiler moves the load down to its use.
__device__ __forceinline__ int32_t row_number(const int32_t* index, int32_t row, int32_t end) {
  int32_t number = 0;
  asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %2, %3;\n@p ld.global.nc.b32 %0, [%1];\n}"
               : "+r"(number)
               : "l"(index + row), "r"(row), "r"(end));
  return number;
}

// Rows of the tile, the same in all its stages.
template <class K>
__device__ __forceinline__ void gather_tile_rows(const Block<K>& b, int thread) {
  static_assert(K::kGather == Gather::a && !K::kRaggedSum);
  constexpr int kPasses = K::kRows / 16;
  Ring<K> ring, landed;
  int32_t issued = 0;
  const int chunk = thread % 8, first_row = thread / 8;
  const uint32_t within = first_row * 128 + ((chunk ^ (first_row % 8)) * 16);
  const auto land = [&] {
    fence_async_proxy();
    barrier_arrive(b.full + 8 * landed.stage);
    landed.next();
  };
  // Absent rows are copies of the first: what they give is not stored.
  int32_t slots[kPasses];
  TilePlace ahead{};
  RowRange rows_ahead{};
  const auto look_ahead = [&](int32_t number, int32_t group) {
    if (number >= b.count) return;
    ahead = tile_at(b.p.tiles, b.starts, number, group, b.rank);
    rows_ahead = b.rows_of(ahead.group);
    const int32_t row = rows_ahead.begin + ahead.row_tile * K::kRows + first_row;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) slots[i] = row_number(b.p.index, row + 16 * i, rows_ahead.end);
  };
  look_ahead(b.first, 0);
  int32_t slot = 0;
  const int32_t depth = (b.p.sum + K::kDepth - 1) / K::kDepth;
  for (int32_t number = b.first; number < b.count; number += b.step) {
    const TilePlace tile = ahead;
    const RowRange rows = rows_ahead;
    const __nv_bfloat16* from[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i)
      from[i] = b.p.src + chunk * 8 +
                static_cast<int64_t>(divide(static_cast<uint32_t>(slots[i]), b.p.divisor)) * b.p.src_width;
    look_ahead(number + b.step, tile.group);
    for (int32_t d = 0; d < depth; ++d, ring.next()) {
      begin_gathered_stage(b, ring, thread, rows, tile, d * K::kDepth, slot);
      const uint32_t to = b.stage_a(ring.stage) + within;
      if ((d + 1) * K::kDepth <= b.p.src_width) {
#pragma unroll
        for (int i = 0; i < kPasses; ++i) copy_chunk(to + i * 2048, from[i]);
      } else {
        const bool inside = d * K::kDepth + chunk * 8 < b.p.src_width;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) copy_chunk(to + i * 2048, inside ? from[i] : b.p.src, inside);
      }
#pragma unroll
      for (int i = 0; i < kPasses; ++i) from[i] += K::kDepth;
      copy_commit();
      if (issued >= K::kLag) {
        copy_wait<K::kLag>();
        land();
      }
      ++issued;
    }
    slot = (slot + 1) % K::kPlaces;
  }
  copy_wait<0>();
  for (int i = 0; i < (issued < K::kLag ? issued : K::kLag); ++i) land();
}

// Row numbers of the summed rows of two stages at a time, one for each lane of a warp: lane 16 h + 4 i + l
// holds that of row 16 i + 4 w + l of stage h, of which warp w copies the chunks.
template <class K>
class RowsAhead {
 public:
  __device__ __forceinline__ RowsAhead(const Block<K>& b, int thread)
      : b_(b), row_(thread % 32 / 16 * K::kDepth + thread % 16 / 4 * 16 + thread / 32 * 4 + thread % 4) {
    number_ = b.first - b.step;
    next_tile();
    slot_ = row_number(b_.p.index, at_ + row_, rows_.end);
  }
  // Those of the next two stages of a tile; fetches what follows them.
  __device__ __forceinline__ uint32_t next() {
    const uint32_t row = divide(static_cast<uint32_t>(slot_), b_.p.divisor);
    at_ += 2 * K::kDepth;
    if (at_ >= rows_.end) next_tile();
    slot_ = row_number(b_.p.index, at_ + row_, rows_.end);
    return row;
  }

 private:
  // The next tile with rows to sum.
  __device__ __forceinline__ void next_tile() {
    do {
      number_ += b_.step;
      if (number_ >= b_.count) {
        rows_ = {0, 0};
        at_ = 0;
        return;
      }
      group_ = tile_at(b_.p.tiles, b_.starts, number_, group_).group;
      rows_ = b_.rows_of(group_);
    } while (rows_.begin >= rows_.end);
    at_ = rows_.begin;
  }

  const Block<K>& b_;
  const int32_t row_;
  int32_t number_, group_ = 0, at_ = 0, slot_ = 0;
  RowRange rows_{};
};

template <class K>
__device__ __forceinline__ void gather_summed_rows(const Block<K>& b, int thread) {
  static_assert(K::kGather != Gather::none && K::kRaggedSum);
  constexpr int kPasses = K::kDepth / 16, kBlocks = (K::kGather == Gather::a ? K::kRows : K::kColumns) / 64;
  Ring<K> ring;
  int32_t group = 0;
  const int chunk = thread % 8, first_row = thread / 8, lane = thread % 32;
  const uint32_t within = first_row * 128 + ((chunk ^ (first_row % 8)) * 16);
  RowsAhead<K> ahead(b, thread);
  uint32_t held = 0;
  for (int32_t number = b.first; number < b.count; number += b.step) {
    const TilePlace tile = tile_at(b.p.tiles, b.starts, number, group, b.rank);
    group = tile.group;
    const RowRange rows = b.rows_of(group);
    const int32_t depth = b.depth_of(rows);
    const int32_t start = K::kGather == Gather::a ? tile.row_tile * K::kRows : tile.column_tile * K::kColumns;
    const __nv_bfloat16* const from = b.p.src + start + chunk * 8;
    const bool whole_columns = start + kBlocks * 64 <= b.p.src_width;
    for (int32_t d = 0; d < depth; ++d, ring.next()) {
      if (d % 2 == 0) held = ahead.next();
      const __nv_bfloat16* row[kPasses];
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const uint32_t at = __shfl_sync(0xffffffffu, held, d % 2 * 16 + 4 * i + lane / 8);
        row[i] = from + static_cast<int64_t>(at) * b.p.src_width;
      }
      begin_gathered_stage(b, ring, thread, rows, tile, d * K::kDepth, 0);
      const uint32_t to = (K::kGather == Gather::a ? b.stage_a(ring.stage) : b.stage_b(ring.stage)) + within;
      const int32_t valid = rows.end - rows.begin - d * K::kDepth;
      if (valid >= K::kDepth && whole_columns) {
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
#pragma unroll
          for (int j = 0; j < kBlocks; ++j) copy_chunk(to + j * 8192 + i * 2048, row[i] + j * 64);
        }
      } else {
        // The multiplying side zeroes absent rows; absent columns only reach results that are not stored.
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          const bool inside = start + j * 64 + chunk * 8 < b.p.src_width;
#pragma unroll
          for (int i = 0; i < kPasses; ++i) {
            if (inside && first_row + 16 * i < valid) copy_chunk(to + j * 8192 + i * 2048, row[i] + j * 64);
          }
        }
      }
      barrier_arrive_after_copies(b.full + 8 * ring.stage);
    }
  }
}

}  // namespace moebius::kernels::cuda
