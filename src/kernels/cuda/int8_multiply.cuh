// The multiplying side of the integer product and the kernel itself (see int8_kernel.cuh).
#pragma once

#include "kernels/cuda/hopper_wgmma_int8.cuh"
#include "kernels/cuda/int8_epilogue.cuh"

namespace moebius::kernels::cuda {

template <int COUNT>
__device__ __forceinline__ void fence_registers(int32_t (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

template <class K>
__device__ __forceinline__ void multiply_int8_tiles(const Int8Block<K>& b, int worker, int thread) {
  using Instruction = WgmmaInt8<K::kColumns>;
  constexpr int kPartBytes = 64 * K::kDepth;
  const int warp = thread / 32, lane = thread % 32;
  const uint32_t staging = b.staging + (worker * 4 + warp) * 2048;
  const uint64_t first_a = operand(b.stage_a(0) + (K::kPingpong ? 0 : worker * kPartBytes), 8192, 1024);
  const uint64_t first_b = operand(b.stage_b(0), 8192, 1024);
  const auto release = [&](int stage) {
    if constexpr (K::kBlocks == 1) {
      if (lane == 0) barrier_arrive(b.empty + 8 * stage);
    } else {
      if (lane < K::kBlocks) barrier_arrive_at(b.empty + 8 * stage, lane);
    }
  };
  Ring<K> ring;
  int32_t turn = 0, slot = K::kPlaces - 1;
  const int32_t depth = uniform(b.depth());
  for (int32_t number = b.first; number < b.count; number += b.step, turn ^= 1) {
    slot = (slot + 1) % K::kPlaces;
    if (K::kPingpong && turn != worker) {
      ring.skip(depth);
      continue;
    }
    int32_t sums[K::kParts][K::kColumns / 2];
#pragma unroll
    for (int h = 0; h < K::kParts; ++h) {
#pragma unroll
      for (int i = 0; i < K::kColumns / 2; ++i) sums[h][i] = 0;
    }
    // In turns, as in grouped_multiply.cuh.
    constexpr int kTurn = 3;
    if (K::kPingpong && number != b.first) group_sync(kTurn + worker, 256);
    // Multiplies the stage that the ring stands at, without waiting for the result.
    const auto multiply = [&] {
      barrier_wait(b.full + 8 * ring.stage, ring.parity);
      const uint64_t from_a = first_a + ring.stage * (K::kStageBytes >> 4);
      const uint64_t from_b = first_b + ring.stage * (K::kStageBytes >> 4);
#pragma unroll
      for (int h = 0; h < K::kParts; ++h) fence_registers(sums[h]);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < K::kDepth / 32; ++s) {
#pragma unroll
        for (int h = 0; h < K::kParts; ++h)
          Instruction::issue(sums[h], from_a + h * (kPartBytes >> 4) + s * (32 >> 4), from_b + s * (32 >> 4));
      }
      wgmma_commit();
#pragma unroll
      for (int h = 0; h < K::kParts; ++h) fence_registers(sums[h]);
    };
    multiply();
    const ResultPlace place = told_place(b.places, slot);
    const int32_t row = (K::kPingpong ? 0 : 64 * worker) + 16 * warp;  // of the warp, in the tile
    const float row_scale =
        fetch_row_scale<K>(b.p, place.first_row + row, place.first_row + place.rows, lane);
    fetch_column_scales<K>(b.p.b_scales + static_cast<int64_t>(place.group) * b.p.padded_n + place.column,
                           b.p.n - place.column, staging, lane);
    int previous = ring.stage;
    ring.next();
    for (int32_t d = 1; d < depth; ++d, ring.next()) {
      multiply();
      wgmma_wait<1>();
      release(previous);
      previous = ring.stage;
    }
    if (K::kPingpong && number + b.step < b.count) group_arrive(kTurn + 1 - worker, 256);
    wgmma_wait<0>();
#pragma unroll
    for (int h = 0; h < K::kParts; ++h) fence_registers(sums[h]);
    release(previous);
    // Sums of a part, by digit.
    constexpr int kResults = K::kParts / K::kDigits;
    using Digits = int32_t[K::kDigits][K::kColumns / 2];
    PartPlace places[kResults];
#pragma unroll
    for (int h = 0; h < kResults; ++h)
      places[h] = {place.group, place.column, static_cast<int64_t>(place.first_row) + row + 64 * h,
                   place.rows - row - 64 * h, b.p.n - place.column};
    column_scales_are_there();
    constexpr bool kPacks = K::kColumns % 64 == 0;
    if (kPacks && b.p.whole) {
      if constexpr (kPacks) {
        PackedSums<K::kColumns> packed[kResults];
#pragma unroll
        for (int h = 0; h < kResults; ++h)
          packed[h] = pack_int8_part<K>(reinterpret_cast<const Digits&>(sums[h]),
                                        row_scales<K>(row_scale, h, lane), staging, lane);
#pragma unroll
        for (int h = 0; h < kResults; ++h)
          if (!places[h].is_empty()) store_packed_part<K>(b.p, packed[h], staging, places[h], lane);
      }
    } else {
#pragma unroll
      for (int h = 0; h < kResults; ++h) {
        const RowScales<K::kDigits> scales = row_scales<K>(row_scale, h, lane);
        if (!places[h].is_empty())
          store_int8_part<K>(b.p, reinterpret_cast<const Digits&>(sums[h]), scales, staging, places[h], lane);
      }
    }
  }
}

template <class K>
__global__ void __launch_bounds__(K::kThreads, 1) int8_kernel(const __grid_constant__ Int8KernelParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // for other machine code it stays empty and is never launched
  extern __shared__ char shared[];
  const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
  const uint32_t staging = base + K::kStages * K::kStageBytes, full = staging + K::kStagingBytes;
  const uint32_t empty = full + 8 * K::kStages;
  int32_t* starts = reinterpret_cast<int32_t*>(shared + (full + 256 - shared_address(shared)));
  const int thread = static_cast<int>(threadIdx.x), worker = uniform(thread / 128);
  if (thread == 32) {
    for (int s = 0; s < K::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, K::kConsumerArrivals);
    }
    barrier_init_fence();
  }
  if (thread < 32) {
    number_tiles(
        p.tiles, p.num_groups,
        [&](int g) {
          return p.offsets == nullptr ? p.num_rows : __ldg(p.offsets + g + 1) - __ldg(p.offsets + g);
        },
        starts, thread);
  }
  __syncthreads();
  if constexpr (K::kBlocks > 1) cluster_sync();  // the other blocks' barriers are ready
  const Int8Block<K> block{p,
                           base,
                           staging,
                           full,
                           empty,
                           full + 256 + 6144 - 16 * K::kPlaces,
                           starts,
                           static_cast<int32_t>(blockIdx.x) / K::kBlocks,
                           static_cast<int32_t>(gridDim.x) / K::kBlocks,
                           uniform(starts[p.num_groups]),
                           static_cast<int32_t>(blockIdx.x) % K::kBlocks};
  if (worker == 0) {
    fewer_registers<40>();
    if (thread < 32) copy_int8_tiles(block, thread);
  } else {
    more_registers<232>();
    // The kernel before has made the codes and scales of the rows. Weights, offsets and the order of the
    // tiles were there before it (Int8RowsArgs::product_follows).
    wait_for_kernel_before();
    allow_next_kernel();
    multiply_int8_tiles(block, worker - 1, thread % 128);
  }
  wait_for_kernel_before();  // blocks without tiles end after it too
  // The other blocks may still copy to this one's memory and arrive at its barriers.
  if constexpr (K::kBlocks > 1) cluster_sync();
#endif
}

}  // namespace moebius::kernels::cuda
