// Stable counting sort of slots by expert (kernels/api/route.h) in three launches: histograms of tiles, their
// scan, ranks. Order within an expert is by slot whatever the scheduling: a warp owns a contiguous part of a
// tile, and equal experts within 32 slots are ranked by lane.
#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kMaxExperts = 1024, kWarps = kSortThreads / 32;

// Shared memory: E counters. tile_counts: (tiles, E) out.
__global__ void __launch_bounds__(kSortThreads)
    count_kernel(const int32_t* __restrict__ experts,  // (N)
                 int32_t* __restrict__ tile_counts, int64_t num_slots, int num_experts,
                 int64_t slots_per_tile) {
  __shared__ int counts[kMaxExperts];
  for (int e = threadIdx.x; e < num_experts; e += kSortThreads) counts[e] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * slots_per_tile, end = min(begin + slots_per_tile, num_slots);
  for (int64_t slot = begin + threadIdx.x; slot < end; slot += kSortThreads)
    atomicAdd(&counts[experts[slot]], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += kSortThreads)
    tile_counts[static_cast<int64_t>(blockIdx.x) * num_experts + e] = counts[e];
}

// One block, a thread per expert. tile_counts become the number of slots of the expert in earlier tiles.
__global__ void __launch_bounds__(kMaxExperts)
    scan_kernel(int32_t* __restrict__ tile_counts,  // (tiles, E) in and out
                int32_t* __restrict__ offsets,      // (E + 1) out
                int num_tiles, int num_experts, int64_t capacity) {
  __shared__ int warp_sums[32];
  const int e = threadIdx.x, lane = e % 32;
  int total = 0;
  if (e < num_experts) {
    constexpr int kBatch = 16;
    for (int first = 0; first < num_tiles; first += kBatch) {
      int count[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        count[i] = first + i < num_tiles ? tile_counts[static_cast<int64_t>(first + i) * num_experts + e] : 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < num_tiles) tile_counts[static_cast<int64_t>(first + i) * num_experts + e] = total;
        total += count[i];
      }
    }
  }
  int rows = static_cast<int>(min(static_cast<int64_t>(total), capacity));
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, rows, step);
    if (lane >= step) rows += below;
  }
  if (lane == 31) warp_sums[e / 32] = rows;
  __syncthreads();
  for (int w = 0; w < e / 32; ++w) rows += warp_sums[w];
  if (e < num_experts) offsets[e + 1] = rows;
  if (e == 0) offsets[0] = 0;
}

// Dynamic shared memory: (kWarps, E) ints, first the counts of each warp's part, then its next position.
__global__ void __launch_bounds__(kSortThreads)
    rank_kernel(const int32_t* __restrict__ experts,     // (N)
                const int32_t* __restrict__ tile_first,  // (tiles, E)
                const int32_t* __restrict__ offsets,     // (E + 1)
                int32_t* __restrict__ order,             // (N) out
                int32_t* __restrict__ inverse,           // (N) out
                int64_t num_slots, int num_experts, int64_t slots_per_tile, int64_t capacity) {
  extern __shared__ int next[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* mine = next + warp * num_experts;
  for (int i = threadIdx.x; i < kWarps * num_experts; i += kSortThreads) next[i] = 0;
  __syncthreads();
  const int64_t tile_begin = blockIdx.x * slots_per_tile,
                tile_end = min(tile_begin + slots_per_tile, num_slots);
  const int64_t part = slots_per_tile / kWarps;  // a multiple of 32
  const int64_t begin = min(tile_begin + warp * part, tile_end), end = min(begin + part, tile_end);
  for (int64_t slot = begin + lane; slot < end; slot += 32) atomicAdd(&mine[experts[slot]], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += kSortThreads) {
    int position = tile_first[static_cast<int64_t>(blockIdx.x) * num_experts + e];
    for (int w = 0; w < kWarps; ++w) {
      const int count = next[w * num_experts + e];
      next[w * num_experts + e] = position;
      position += count;
    }
  }
  __syncthreads();
  const int64_t num_rows = offsets[num_experts];
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t slot = first + lane;
    const bool present = slot < end;
    const int expert = present ? experts[slot] : -1;
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    const int rank = __popc(same & ((1u << lane) - 1));
    int position = 0;
    if (present) position = mine[expert] + rank;
    __syncwarp();
    if (present && rank == 0) mine[expert] += __popc(same);
    __syncwarp();
    if (!present) continue;
    const bool kept = position < capacity;
    const int32_t row = kept ? offsets[expert] + position : -1;
    inverse[slot] = row;
    if (kept) order[row] = static_cast<int32_t>(slot);
    if (slot >= num_rows) order[slot] = -1;  // rows past the last are nobody's
  }
}

}  // namespace

void sort_by_expert(const SortByExpertArgs& a, Stream stream_of_libtorch) {
  const cudaStream_t stream = cuda_stream(stream_of_libtorch);
  MOEBIUS_CHECK(a.num_experts >= 1 && a.num_experts <= kMaxExperts, "experts: ", a.num_experts);
  MOEBIUS_CHECK(a.num_slots <= INT32_MAX, "slots: ", a.num_slots);
  const int experts = static_cast<int>(a.num_experts);
  const int64_t capacity = a.capacity < 0 ? a.num_slots : a.capacity;
  const SortTiles tiles = sort_tiles(a.num_slots);
  int32_t* counts =
      scratch_of<int32_t>(static_cast<size_t>(std::max<int64_t>(1, tiles.count) * experts), stream);
  if (tiles.count > 0) {
    count_kernel<<<grid_size(tiles.count), kSortThreads, 0, stream>>>(a.experts, counts, a.num_slots, experts,
                                                                      tiles.slots_per_tile);
    MOEBIUS_CUDA_CHECK_LAUNCH("sort_by_expert count");
  }
  const int scan_threads = static_cast<int>(ceil_div(experts, 32) * 32);
  scan_kernel<<<1, scan_threads, 0, stream>>>(counts, a.offsets, static_cast<int>(tiles.count), experts,
                                              capacity);
  MOEBIUS_CUDA_CHECK_LAUNCH("sort_by_expert scan");
  if (tiles.count > 0) {
    rank_kernel<<<grid_size(tiles.count), kSortThreads, kWarps * experts * sizeof(int), stream>>>(
        a.experts, counts, a.offsets, a.order, a.inverse, a.num_slots, experts, tiles.slots_per_tile,
        capacity);
    MOEBIUS_CUDA_CHECK_LAUNCH("sort_by_expert rank");
  }
}

}  // namespace moebius::kernels::cuda
