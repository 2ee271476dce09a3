// Stable counting sort of slots by expert (kernels/api/route.h) in one launch: the blocks, all on the device
// at once, count their tiles, meet, and rank. Order within an expert is by slot whatever the scheduling: a
// warp owns a contiguous part of a tile, and equal experts within 32 slots are ranked by lane.
#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kMaxExperts = 1024, kWarps = kSortThreads / 32;

struct SortParams {
  const int32_t* experts;  // (N)
  int32_t* tile_counts;    // (tiles, E), scratch
  int32_t* order;          // (N) out
  int32_t* inverse;        // (N) out
  int32_t* offsets;        // (E + 1) out
  int64_t num_slots, slots_per_tile, capacity;
  int num_experts, num_tiles;
};

// starts[e] for e up to E: sum of rows[] before e. By one warp; rows and starts may be the same memory.
__device__ __forceinline__ void sum_before(const int32_t* rows, int32_t* starts, int num_experts, int lane) {
  const int per_lane = (num_experts + 31) / 32;
  const int first = min(lane * per_lane, num_experts), last = min(first + per_lane, num_experts);
  int32_t own = 0;
  for (int e = first; e < last; ++e) own += rows[e];
  int32_t sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  int32_t at = sum - own;
  for (int e = first; e < last; ++e) {
    const int32_t count = rows[e];
    starts[e] = at;
    at += count;
  }
  if (lane == 31) starts[num_experts] = sum;
}

// A block for each tile. Dynamic shared memory: (kWarps, E) ints, first the counts of each warp's part, then
// its next position; then E + 1 starts of the experts.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(const SortParams p) {
  extern __shared__ int32_t next[];
  int32_t* const starts = next + kWarps * p.num_experts;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t* const mine = next + warp * p.num_experts;
  for (int i = threadIdx.x; i < kWarps * p.num_experts; i += kSortThreads) next[i] = 0;
  __syncthreads();
  const int64_t tile_begin = blockIdx.x * p.slots_per_tile,
                tile_end = min(tile_begin + p.slots_per_tile, p.num_slots);
  const int64_t part = p.slots_per_tile / kWarps;  // a multiple of 32
  const int64_t begin = min(tile_begin + warp * part, tile_end), end = min(begin + part, tile_end);
  for (int64_t slot = begin + lane; slot < end; slot += 32) atomicAdd(&mine[p.experts[slot]], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < p.num_experts; e += kSortThreads) {
    int32_t count = 0;
    for (int w = 0; w < kWarps; ++w) count += next[w * p.num_experts + e];
    p.tile_counts[static_cast<int64_t>(blockIdx.x) * p.num_experts + e] = count;
  }
  cooperative_groups::this_grid().sync();

  // Slots of the expert in earlier tiles, and in all.
  for (int e = threadIdx.x; e < p.num_experts; e += kSortThreads) {
    constexpr int kBatch = 16;
    int32_t before = 0, total = 0;
    for (int first = 0; first < p.num_tiles; first += kBatch) {
      int32_t count[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        count[i] = first + i < p.num_tiles
                       ? __ldcg(p.tile_counts + static_cast<int64_t>(first + i) * p.num_experts + e)
                       : 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < static_cast<int>(blockIdx.x)) before += count[i];
        total += count[i];
      }
    }
    for (int w = 0; w < kWarps; ++w) {
      const int32_t count = next[w * p.num_experts + e];
      next[w * p.num_experts + e] = before;
      before += count;
    }
    starts[e] = static_cast<int32_t>(min(static_cast<int64_t>(total), p.capacity));
  }
  __syncthreads();
  if (warp == 0) sum_before(starts, starts, p.num_experts, lane);
  __syncthreads();
  if (blockIdx.x == 0)
    for (int e = threadIdx.x; e <= p.num_experts; e += kSortThreads) p.offsets[e] = starts[e];

  const int64_t num_rows = starts[p.num_experts];
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t slot = first + lane;
    const bool present = slot < end;
    const int expert = present ? p.experts[slot] : -1;
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    const int rank = __popc(same & ((1u << lane) - 1));
    int32_t position = 0;
    if (present) position = mine[expert] + rank;
    __syncwarp();
    if (present && rank == 0) mine[expert] += __popc(same);
    __syncwarp();
    if (!present) continue;
    const bool kept = position < p.capacity;
    const int32_t row = kept ? starts[expert] + position : -1;
    p.inverse[slot] = row;
    if (kept) p.order[row] = static_cast<int32_t>(slot);
    if (slot >= num_rows) p.order[slot] = -1;  // rows past the last are nobody's
  }
}

}  // namespace

void sort_by_expert(const SortByExpertArgs& a, Stream stream_of_libtorch) {
  const cudaStream_t stream = cuda_stream(stream_of_libtorch);
  MOEBIUS_CHECK(a.num_experts >= 1 && a.num_experts <= kMaxExperts, "experts: ", a.num_experts);
  MOEBIUS_CHECK(a.num_slots <= INT32_MAX, "slots: ", a.num_slots);
  const SortTiles tiles = sort_tiles(a.num_slots, num_multiprocessors());
  if (tiles.count == 0) {
    MOEBIUS_CUDA_CHECK(
        cudaMemsetAsync(a.offsets, 0, static_cast<size_t>(a.num_experts + 1) * sizeof(int32_t), stream));
    return;
  }
  SortParams p{};
  p.experts = a.experts;
  p.tile_counts = scratch_of<int32_t>(static_cast<size_t>(tiles.count * a.num_experts), stream);
  p.order = a.order;
  p.inverse = a.inverse;
  p.offsets = a.offsets;
  p.num_slots = a.num_slots;
  p.slots_per_tile = tiles.slots_per_tile;
  p.capacity = a.capacity < 0 ? a.num_slots : a.capacity;
  p.num_experts = static_cast<int>(a.num_experts);
  p.num_tiles = static_cast<int>(tiles.count);
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(grid_size(tiles.count));
  config.blockDim = kSortThreads;
  config.dynamicSmemBytes = static_cast<size_t>((kWarps + 1) * p.num_experts + 1) * sizeof(int32_t);
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  MOEBIUS_CUDA_CHECK(cudaLaunchKernelEx(&config, sort_kernel, p));
}

}  // namespace moebius::kernels::cuda
