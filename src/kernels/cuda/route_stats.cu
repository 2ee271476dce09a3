// Routing statistics (kernels/api/route.h) in two stages: blocks sum slices of each segment's tokens, a
// second kernel sums the slices. Counts are integers until the end; every float is added in a fixed order.
#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kThreads = 1024;

// First token whose segment is at least `segment`.
__device__ int64_t lower_bound(const int32_t* segments, int64_t num_tokens, int64_t segment) {
  int64_t low = 0, high = num_tokens;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (segments[middle] < segment) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Block b: slice b % slices of segment b / slices. Threads are (token lanes, columns), columns = power of two
// >= E.
__global__ void __launch_bounds__(kThreads) route_stats_kernel(
    const float* __restrict__ probs,       // (T, E)
    const int32_t* __restrict__ experts,   // (T, K)
    const float* __restrict__ lse,         // (T)
    const int32_t* __restrict__ segments,  // (T) or null
    float* __restrict__ partial,           // (S * slices, 2E + 2) out: probs, counts, entropy, lse^2
    int64_t num_tokens, int num_experts, int top_k, int columns, int64_t slices) {
  __shared__ float sums[kThreads];
  __shared__ int counts[kThreads];
  __shared__ float totals[2 * 32];
  __shared__ int64_t range[2];
  const int thread = threadIdx.x;
  const int64_t segment = blockIdx.x / slices, slice = blockIdx.x % slices;
  if (thread < 2)
    range[thread] =
        segments == nullptr ? thread * num_tokens : lower_bound(segments, num_tokens, segment + thread);
  counts[thread] = 0;
  __syncthreads();
  const int64_t length = range[1] - range[0], share = (length + slices - 1) / slices;
  const int64_t begin = range[0] + min(slice * share, length),
                end = range[0] + min((slice + 1) * share, length);

  const int column = thread & (columns - 1), lanes = kThreads / columns;
  float sum = 0.0f, total[2] = {0.0f, 0.0f};
  if (column < num_experts) {
#pragma unroll 4
    for (int64_t t = begin + thread / columns; t < end; t += lanes) {
      const float p = probs[t * num_experts + column];
      sum += p;
      if (p > 0.0f) total[0] -= p * logf(p);
      if (!(p >= 0.0f)) total[0] = p;  // not a number stays one
    }
  }
  for (int64_t slot = begin * top_k + thread; slot < end * top_k; slot += kThreads)
    atomicAdd(&counts[experts[slot]], 1);
  for (int64_t t = begin + thread; t < end; t += kThreads) total[1] += lse[t] * lse[t];
  sums[thread] = sum;
  __syncthreads();
  for (int step = kThreads / 2; step >= columns; step /= 2) {
    if (thread < step) sums[thread] += sums[thread + step];
    __syncthreads();
  }
  float* mine = partial + static_cast<int64_t>(blockIdx.x) * (2 * num_experts + 2);
  if (thread < num_experts) {
    mine[thread] = sums[thread];
    mine[num_experts + thread] = static_cast<float>(counts[thread]);
  }
  sum_row(total, totals);
  if (thread == 0) {
    mine[2 * num_experts] = total[0];
    mine[2 * num_experts + 1] = total[1];
  }
}

// Sums the slices of each segment; the last blocks sum entropy and lse^2 over everything. A block is (32
// columns, 8).
__global__ void route_stats_sum_kernel(const float* __restrict__ partial,  // (S * slices, 2E + 2)
                                       float* __restrict__ prob_sum,       // (S, E) out
                                       float* __restrict__ counts,         // (S, E) out
                                       float* __restrict__ entropy_sum,    // (1) out
                                       float* __restrict__ lse_sq_sum,     // (1) out
                                       int64_t num_segments, int num_experts, int64_t slices) {
  __shared__ float shared[8][33];
  const int stride = 2 * num_experts + 2;
  const bool scalars = blockIdx.x == gridDim.x - 1;  // this block has the two sums over all segments
  const int tiles = (2 * num_experts + 31) / 32;
  const int64_t segment = blockIdx.x / tiles;
  const int column = scalars ? 2 * num_experts + threadIdx.x : blockIdx.x % tiles * 32 + threadIdx.x;
  const int end = scalars ? stride : 2 * num_experts;
  const int64_t first = scalars ? 0 : segment * slices,
                last = scalars ? num_segments * slices : first + slices;
  float sum = 0.0f;
  if (column < end) {
#pragma unroll 8
    for (int64_t row = first + threadIdx.y; row < last; row += 8) sum += partial[row * stride + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= end) return;
  sum = 0.0f;
#pragma unroll
  for (int lane = 0; lane < 8; ++lane) sum += shared[lane][threadIdx.x];
  if (scalars) {
    *(threadIdx.x == 0 ? entropy_sum : lse_sq_sum) = sum;
  } else if (column < num_experts) {
    prob_sum[segment * num_experts + column] = sum;
  } else {
    counts[segment * num_experts + column - num_experts] = sum;
  }
}

}  // namespace

void route_stats(const RouteStatsArgs& a, Stream stream) {
  const RouteOptions& o = a.options;
  MOEBIUS_CHECK(o.num_experts >= 1 && o.num_experts <= kThreads, "experts: ", o.num_experts);
  const int64_t slices = stats_slices(o.num_tokens, a.num_segments, num_multiprocessors());
  const int64_t blocks = a.num_segments * slices;
  const int experts = static_cast<int>(o.num_experts);
  int columns = 1;
  while (columns < experts) columns *= 2;
  float* partial =
      scratch_of<float>(static_cast<size_t>(blocks * (2 * o.num_experts + 2)), cuda_stream(stream));
  route_stats_kernel<<<grid_size(blocks), kThreads, 0, cuda_stream(stream)>>>(
      a.probs, a.experts, a.lse, a.segments, partial, o.num_tokens, experts, static_cast<int>(o.top_k),
      columns, slices);
  MOEBIUS_CUDA_CHECK_LAUNCH("route_stats");
  const int64_t tiles = ceil_div(2 * o.num_experts, 32);
  route_stats_sum_kernel<<<grid_size(a.num_segments * tiles + 1), dim3(32, 8), 0, cuda_stream(stream)>>>(
      partial, a.prob_sum, a.counts, a.entropy_sum, a.lse_sq_sum, a.num_segments, experts, slices);
  MOEBIUS_CUDA_CHECK_LAUNCH("route_stats_sum");
}

}  // namespace moebius::kernels::cuda
