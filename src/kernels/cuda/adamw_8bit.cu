// AdamW with moments in eight bits (kernels/api/moment_codes.h). A warp takes a block of 256 elements, eight
// a lane: the moments are made in registers, the block's largest magnitudes go round the warp, and codes are
// written back. Tables and launches as in optimizer.cu.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/api/moment_codes.h"
#include "kernels/cuda/adamw_table.cuh"
#include "kernels/cuda/kernels.h"

namespace moebius::kernels::cuda {
namespace {

constexpr int kEightBitThreads = 256, kLaneElements = kMomentBlock / 32;
constexpr int64_t kEightBitPiece = 16384;  // elements of a thread block, whole blocks of moments
constexpr int kMostEightBitTensors = 80;   // of a launch: its parameters stay below 8 KiB

struct EightBitEntry {
  void* param;
  float* master;
  const void* grad;
  uint8_t *m, *v;
  float *m_scale, *v_scale;
  int64_t size, scalar_index;
  float step, shrink;
};

struct EightBitTable : AdamWTable<EightBitEntry, kMostEightBitTensors> {
  uint32_t number;  // of the step
};

// N elements from `p`, of which the first `count` exist; the others are zero.
template <class T, int N>
__device__ __forceinline__ void load_some(const T* p, int count, bool aligned, float (&x)[N]) {
  if (aligned && count >= N) return load_floats<N>(p, x);
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = j < count ? to_float(p[j]) : 0.0f;
}
template <class T, int N>
__device__ __forceinline__ void store_some(T* p, int count, bool aligned, const float (&x)[N]) {
  if (aligned && count >= N) return store_floats<N>(p, x);
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (j < count) from_float(x[j], p[j]);
}

template <class P, class G, bool MASTER>
__global__ void __launch_bounds__(kEightBitThreads)
    adamw_8bit_kernel(const __grid_constant__ EightBitTable table) {
  const float grad_scale = *table.grad_scale;
  if (!isfinite(grad_scale)) return;
  const int index = find_tensor(table, blockIdx.x);
  const EightBitEntry& t = table.tensors[index];
  const auto [lr, shrink, root] = factors_of(table, t);
  const uint32_t step = table.scalars == nullptr ? table.number : static_cast<uint32_t>(table.scalars[1]);
  P* param = static_cast<P*>(t.param);
  const G* grad = static_cast<const G*>(t.grad);
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(param) | reinterpret_cast<uintptr_t>(grad) |
                              reinterpret_cast<uintptr_t>(t.m) | reinterpret_cast<uintptr_t>(t.v) |
                              reinterpret_cast<uintptr_t>(t.master);
  const bool aligned = addresses % 16 == 0;
  const int lane = threadIdx.x % 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x - table.first_block[index]) * kEightBitPiece;
  const int64_t end = min(first + kEightBitPiece, t.size);
  for (int64_t begin = first + threadIdx.x / 32 * kMomentBlock; begin < end;
       begin += kEightBitThreads / 32 * kMomentBlock) {
    const int64_t at = begin + lane * kLaneElements;
    const int count = static_cast<int>(min(max(end - at, int64_t{0}), int64_t{kLaneElements}));
    const float old_m_scale = t.m_scale[begin / kMomentBlock], old_v_scale = t.v_scale[begin / kMomentBlock];
    float w[kLaneElements], g[kLaneElements], m[kLaneElements], v[kLaneElements];
    uint8_t m_codes[kLaneElements], v_codes[kLaneElements];
    load_some<G, kLaneElements>(grad + at, count, aligned, g);
    if constexpr (MASTER) {
      load_some<float, kLaneElements>(t.master + at, count, aligned, w);
    } else {
      load_some<P, kLaneElements>(param + at, count, aligned, w);
    }
    if (aligned && count == kLaneElements) {
      *reinterpret_cast<uint2*>(m_codes) = *reinterpret_cast<const uint2*>(t.m + at);
      *reinterpret_cast<uint2*>(v_codes) = *reinterpret_cast<const uint2*>(t.v + at);
    } else {
#pragma unroll
      for (int j = 0; j < kLaneElements; ++j) {
        m_codes[j] = j < count ? t.m[at + j] : 0;
        v_codes[j] = j < count ? t.v[at + j] : 0;
      }
    }
    float m_max = 0.0f, v_max = 0.0f;
#pragma unroll
    for (int j = 0; j < kLaneElements; ++j) {
      const float scaled = g[j] * grad_scale;
      m[j] = table.beta1 * (decode_first_moment(m_codes[j]) * old_m_scale) + table.rest1 * scaled;
      v[j] = table.beta2 * (decode_second_moment(v_codes[j]) * old_v_scale) + table.rest2 * scaled * scaled;
      w[j] = w[j] * shrink - lr * (m[j] / (sqrtf(v[j]) * root + table.eps));
      m_max = fmaxf(m_max, fabsf(m[j]));
      v_max = fmaxf(v_max, v[j]);
    }
    store_some<P, kLaneElements>(param + at, count, aligned, w);
    if constexpr (MASTER) store_some<float, kLaneElements>(t.master + at, count, aligned, w);
    m_max = max_lanes(m_max);
    v_max = max_lanes(v_max);
#pragma unroll
    for (int j = 0; j < kLaneElements; ++j) {
      const uint32_t chance =
          moment_chance(step, static_cast<uint32_t>(t.scalar_index), static_cast<uint32_t>(at + j));
      m_codes[j] = encode_first_moment(m_max > 0.0f ? m[j] / m_max : 0.0f, chance);
      v_codes[j] = encode_second_moment(v_max > 0.0f ? v[j] / v_max : 0.0f, chance >> 12);
    }
    if (aligned && count == kLaneElements) {
      *reinterpret_cast<uint2*>(t.m + at) = *reinterpret_cast<const uint2*>(m_codes);
      *reinterpret_cast<uint2*>(t.v + at) = *reinterpret_cast<const uint2*>(v_codes);
    } else {
#pragma unroll
      for (int j = 0; j < kLaneElements; ++j) {
        if (j >= count) break;
        t.m[at + j] = m_codes[j];
        t.v[at + j] = v_codes[j];
      }
    }
    if (lane == 0) {
      t.m_scale[begin / kMomentBlock] = m_max;
      t.v_scale[begin / kMomentBlock] = v_max;
    }
  }
}

// Bits: parameter and gradient are bf16; there is a master copy.
int eight_bit_combination(const AdamWTensor& t) {
  return (t.param_dtype == DType::bf16 ? 1 : 0) + (t.grad_dtype == DType::bf16 ? 2 : 0) +
         (t.master != nullptr ? 4 : 0);
}

template <int COMBINATION>
void launch_eight_bit(const EightBitTable& table, int blocks, cudaStream_t stream) {
  using P = std::conditional_t<(COMBINATION & 1) != 0, bf16, float>;
  using G = std::conditional_t<(COMBINATION & 2) != 0, bf16, float>;
  adamw_8bit_kernel<P, G, (COMBINATION & 4) != 0><<<blocks, kEightBitThreads, 0, stream>>>(table);
  MOEBIUS_CUDA_CHECK_LAUNCH("adamw_8bit");
}

template <int... COMBINATIONS>
void launch_eight_bit_of(int combination, const EightBitTable& table, int blocks, cudaStream_t stream,
                         std::integer_sequence<int, COMBINATIONS...>) {
  ((combination == COMBINATIONS ? launch_eight_bit<COMBINATIONS>(table, blocks, stream) : void()), ...);
}

}  // namespace

void adamw_8bit(const AdamWArgs& a, Stream stream) {
  constexpr int kCombinations = 8;
  EightBitTable table{};
  table.number = a.step;
  const auto entry_of = [&](const AdamWTensor& t) {
    return EightBitEntry{.param = t.param,
                         .master = t.master,
                         .grad = t.grad,
                         .m = static_cast<uint8_t*>(t.m),
                         .v = static_cast<uint8_t*>(t.v),
                         .m_scale = t.m_scale,
                         .v_scale = t.v_scale,
                         .size = t.size,
                         .scalar_index = t.scalar_index,
                         .step = adamw_step_size(t.lr, a.correction1),
                         .shrink = adamw_shrink(t.lr, t.weight_decay)};
  };
  launch_adamw_tables(table, a, kCombinations, kEightBitPiece, eight_bit_combination, entry_of,
                      [&](int combination, int blocks) {
                        launch_eight_bit_of(combination, table, blocks, cuda_stream(stream),
                                            std::make_integer_sequence<int, kCombinations>{});
                      });
}

}  // namespace moebius::kernels::cuda
