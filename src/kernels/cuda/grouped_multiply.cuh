// The multiplying side of the grouped product and the kernel itself (see grouped_kernel.cuh).
#pragma once

#include "kernels/cuda/grouped_epilogue.cuh"
#include "kernels/cuda/grouped_gather.cuh"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {

// The sums of one 64-row part become results. `row`: its first row in the tile.
template <class K>
__device__ __forceinline__ void finish_part(const Block<K>& b, const PackedSums<K::kColumns>& sums,
                                            uint32_t staging, const ResultPlace& place, int32_t row, int warp,
                                            int lane) {
  const GroupedKernelParams& p = b.p;
  const int32_t width = p.tiles.columns;
  row += 16 * warp;
  const int rows = place.rows - row, columns = width - place.column;
  if (rows <= 0 || columns <= 0) return;
  const int64_t first_row = static_cast<int64_t>(place.first_row) + row;
  if (K::kEpilogue == Epilogue::store || p.out != nullptr)
    store_bf16<K::kColumns>(sums, staging, p.out + first_row * width + place.column, width, rows, columns,
                            K::kEpilogue == Epilogue::store && p.accumulate, lane);
  if constexpr (K::kEpilogue == Epilogue::swiglu)
    store_swiglu<K::kColumns>(sums, p.act + first_row * (width / 2) + place.column / 2, width / 2, rows,
                              columns / 2, lane);
}

template <class K>
__device__ __forceinline__ void multiply_tiles(const Block<K>& b, int worker, int thread) {
  using Instruction = Wgmma<K::kColumns, K::kTransA, K::kTransB>;
  constexpr uint32_t kStepA = (K::kTransA ? 2048 : 32) >> 4, kStepB = (K::kTransB ? 2048 : 32) >> 4;
  const int warp = thread / 32, lane = thread % 32;
  const uint32_t staging = b.staging + (worker * 4 + warp) * 2048;
  const uint64_t first_a = operand(b.stage_a(0) + (K::kPingpong ? 0 : worker * 8192), 8192, 1024);
  const uint64_t first_b = operand(b.stage_b(0), 8192, 1024);
  const auto release = [&](int stage) {
    if (lane != 0) return;
    barrier_arrive(b.empty + 8 * stage);
    if constexpr (K::kPairs) barrier_arrive_at(b.empty + 8 * stage, b.rank ^ 1);
  };
  Ring<K> ring;
  [[maybe_unused]] int32_t group = 0;
  int32_t turn = 0, slot = K::kPlaces - 1;
  for (int32_t number = b.first; number < b.count; number += b.step, turn ^= 1) {
    RowRange rows{};
    ResultPlace place{};
    slot = (slot + 1) % K::kPlaces;
    if constexpr (!K::kTellsPlaces) {
      const TilePlace tile = uniform(tile_at(b.p.tiles, b.starts, number, group, b.rank));
      group = tile.group;
      rows = uniform(b.rows_of(group));
      place = b.place_of(tile, rows);
    }
    const int32_t depth = b.depth_of(rows);
    if (K::kPingpong && turn != worker) {
      ring.skip(depth);
      continue;
    }
    float sums[K::kHalves][K::kColumns / 2];
#pragma unroll
    for (int h = 0; h < K::kHalves; ++h) {
#pragma unroll
      for (int i = 0; i < K::kColumns / 2; ++i) sums[h][i] = 0.0f;
    }
    // The two take turns: beginning before the other has waited for all its stages, this one would take an
    // older turn of the ring for its own, the parities being equal.
    constexpr int kTurn = 3;
    if (K::kPingpong && number != b.first) group_sync(kTurn + worker, 256);
    const auto pass_on = [&] {
      if (K::kPingpong && number + b.step < b.count) group_arrive(kTurn + 1 - worker, 256);
    };
    // Multiplies STEPS slices of 16 of the stage that the ring stands at, without waiting for the result.
    const auto multiply = [&]<int STEPS>(Constant<STEPS>) {
      const uint64_t from_a = first_a + ring.stage * (K::kStageBytes >> 4);
      const uint64_t from_b = first_b + ring.stage * (K::kStageBytes >> 4);
#pragma unroll
      for (int h = 0; h < K::kHalves; ++h) fence_registers(sums[h]);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < STEPS; ++s) {
#pragma unroll
        for (int h = 0; h < K::kHalves; ++h)
          Instruction::issue(sums[h], from_a + h * (8192 >> 4) + s * kStepA, from_b + s * kStepB);
      }
      wgmma_commit();
#pragma unroll
      for (int h = 0; h < K::kHalves; ++h) fence_registers(sums[h]);
    };
    const auto wait = [&] {
      barrier_wait(b.full + 8 * ring.stage, ring.parity);
      if constexpr (K::kRaggedSum && K::kGather != Gather::none) fence_async_proxy();
    };
    // What the slices of a stage with `rest` summed rows read beyond them becomes zero.
    const auto cut = [&](int32_t rest, int32_t steps) {
      zero_rows<K>(b.stage_a(ring.stage), rest, 16 * steps, thread, 128);
      group_sync(1 + worker, 128);
    };
    if (depth > 0) {
      constexpr int kSteps = K::kDepth / 16;
      constexpr Constant<kSteps> kWhole;
      const int32_t sum = K::kRaggedSum ? rows.end - rows.begin : depth * K::kDepth,
                    rest = K::kRaggedSum ? sum % K::kDepth : 0;
      wait();
      if (K::kRaggedSum && sum < K::kDepth) cut(sum, kSteps);
      multiply(kWhole);
      if constexpr (K::kTellsPlaces) place = told_place(b.places, slot);
      int previous = ring.stage;
      ring.next();
      const auto end_one_before = [&] {
        wgmma_wait<1>();
        release(previous);
        previous = ring.stage;
        ring.next();
      };
      const bool ends_cut = K::kCutsSums && rest > 0 && depth > 1;
      for (int32_t d = ends_cut ? 2 : 1; d < depth; ++d) {
        wait();
        if (K::kRaggedSum && !K::kCutsSums && d + 1 == depth && rest > 0) cut(rest, kSteps);
        multiply(kWhole);
        end_one_before();
      }
      if (ends_cut) {
        const int32_t steps = (rest + 15) / 16;
        wait();
        cut(rest, steps);
        if (steps == 4) {
          multiply(kWhole);
        } else if (steps == 3) {
          multiply(Constant<3>{});
        } else if (steps == 2) {
          multiply(Constant<2>{});
        } else {
          multiply(Constant<1>{});
        }
        end_one_before();
      }
      pass_on();
      wgmma_wait<0>();
#pragma unroll
      for (int h = 0; h < K::kHalves; ++h) fence_registers(sums[h]);
      release(previous);
    } else {
      pass_on();
    }
    PackedSums<K::kColumns> packed[K::kHalves];
#pragma unroll
    for (int h = 0; h < K::kHalves; ++h) packed[h].pack(sums[h]);
#pragma unroll
    for (int h = 0; h < K::kHalves; ++h)
      finish_part<K>(b, packed[h], staging, place, (K::kPingpong ? 0 : 64 * worker) + 64 * h, warp, lane);
  }
}

template <class K>
__global__ void __launch_bounds__(K::kThreads, 1)
    grouped_kernel(const __grid_constant__ GroupedKernelParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // for other machine code it stays empty; is_hopper() keeps it from
                                        // being launched
  extern __shared__ char shared[];
  const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
  const uint32_t staging = base + K::kStages * K::kStageBytes, full = staging + K::kStagingBytes;
  const uint32_t empty = full + 8 * K::kStages;
  int32_t* starts = reinterpret_cast<int32_t*>(shared + (full + 256 - shared_address(shared)));
  const int thread = static_cast<int>(threadIdx.x), worker = uniform(thread / 128);
  if (thread < 32) {
    number_tiles(
        p.tiles, p.num_groups, [&](int g) { return __ldg(p.offsets + g + 1) - __ldg(p.offsets + g); }, starts,
        thread);
  }
  if (thread == 32) {
    for (int s = 0; s < K::kStages; ++s) {
      barrier_init(full + 8 * s, K::kGather == Gather::none ? 1 : 129);
      barrier_init(empty + 8 * s, K::kConsumerArrivals);
    }
    barrier_init_fence();
  }
  if constexpr (K::kPairs) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  constexpr int32_t kBlocks = K::kPairs ? 2 : 1;
  const Block<K> block{p,
                       base,
                       staging,
                       full,
                       empty,
                       full + 256 + 6144 - 16 * K::kPlaces,
                       starts,
                       static_cast<int32_t>(blockIdx.x) / kBlocks,
                       static_cast<int32_t>(gridDim.x) / kBlocks,
                       uniform(starts[p.num_groups]),
                       static_cast<int32_t>(blockIdx.x) % kBlocks};
  if (worker == 0) {
    if constexpr (K::kGather == Gather::none) {
      fewer_registers<40>();
      if (thread < 32) copy_tiles(block, thread);
    } else {
      fewer_registers<56>();
      if constexpr (K::kRaggedSum) {
        gather_summed_rows(block, thread);
      } else {
        gather_tile_rows(block, thread);
      }
    }
  } else {
    more_registers<K::kGather == Gather::none ? 232 : 224>();
    multiply_tiles(block, worker - 1, thread % 128);
  }
  // What the other block copies or says must find this one's shared memory.
  if constexpr (K::kPairs) cluster_sync();
#endif
}

}  // namespace moebius::kernels::cuda
