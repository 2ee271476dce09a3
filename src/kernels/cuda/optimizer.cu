// AdamW and the sum of squares over lists of tensors (kernels/api/optimizer.h). A launch takes a table of
// tensors as its parameter; each block works on one piece of one tensor, found by a search in the table's
// block numbers. Tensors of one combination of dtypes share launches. Nothing is copied to the device.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/cuda/adamw_table.cuh"
#include "kernels/cuda/kernels.h"

namespace moebius::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kElements = 8;       // of one thread at a time: 16 bytes of bf16, 32 of fp32
constexpr int64_t kPiece = 16384;  // elements of a block
constexpr int64_t kSumPiece = 65536;
constexpr int kMostTensors = 112;  // of a launch: its parameters stay below 8 KiB

struct AdamWEntry {
  void* param;
  float* master;
  const void* grad;
  void* m;
  void* v;
  int64_t size;
  int64_t scalar_index;
  float step, shrink;  // lr / c1; 1 - lr * decay
};

using PlainTable = AdamWTable<AdamWEntry, kMostTensors>;

struct Moments {
  float m, v, w;
};

__device__ __forceinline__ Moments adamw_one(const PlainTable& table, const Factors& by, float scale, float w,
                                             float g, float m, float v) {
  g *= scale;
  m = table.beta1 * m + table.rest1 * g;
  v = table.beta2 * v + table.rest2 * g * g;
  const float update = m / (sqrtf(v) * by.root + table.eps);
  return {m, v, w * by.shrink - by.step * update};
}

template <class P, class G, class S, bool MASTER>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ PlainTable table) {
  const float scale = *table.grad_scale;
  if (!isfinite(scale)) return;
  const int index = find_tensor(table, blockIdx.x);
  const AdamWEntry& t = table.tensors[index];
  const Factors by = factors_of(table, t);
  P* param = static_cast<P*>(t.param);
  const G* grad = static_cast<const G*>(t.grad);
  S* m_state = static_cast<S*>(t.m);
  S* v_state = static_cast<S*>(t.v);
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_block[index]) * kPiece;
  const int64_t end = min(begin + kPiece, t.size);
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(param) | reinterpret_cast<uintptr_t>(grad) |
                              reinterpret_cast<uintptr_t>(m_state) | reinterpret_cast<uintptr_t>(v_state) |
                              reinterpret_cast<uintptr_t>(t.master);
  const bool aligned = addresses % 16 == 0;
  const int64_t vector_end = aligned ? begin + (end - begin) / kElements * kElements : begin;
  for (int64_t i = begin + threadIdx.x * kElements; i < vector_end; i += kThreads * kElements) {
    float w[kElements], g[kElements], m[kElements], v[kElements];
    load_floats<kElements>(grad + i, g);
    load_floats<kElements>(m_state + i, m);
    load_floats<kElements>(v_state + i, v);
    if constexpr (MASTER) {
      load_floats<kElements>(t.master + i, w);
    } else {
      load_floats<kElements>(param + i, w);
    }
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const Moments one = adamw_one(table, by, scale, w[j], g[j], m[j], v[j]);
      w[j] = one.w;
      m[j] = one.m;
      v[j] = one.v;
    }
    store_floats<kElements>(m_state + i, m);
    store_floats<kElements>(v_state + i, v);
    store_floats<kElements>(param + i, w);
    if constexpr (MASTER) store_floats<kElements>(t.master + i, w);
  }
  for (int64_t i = vector_end + threadIdx.x; i < end; i += kThreads) {
    const float w = MASTER ? t.master[i] : to_float(param[i]);
    const Moments one =
        adamw_one(table, by, scale, w, to_float(grad[i]), to_float(m_state[i]), to_float(v_state[i]));
    from_float(one.m, m_state[i]);
    from_float(one.v, v_state[i]);
    from_float(one.w, param[i]);
    if constexpr (MASTER) t.master[i] = one.w;
  }
}

// Bits: parameter, gradient and state are bf16; there is a master copy.
int combination_of(const AdamWTensor& t) {
  return (t.param_dtype == DType::bf16 ? 1 : 0) + (t.grad_dtype == DType::bf16 ? 2 : 0) +
         (t.state_dtype == DType::bf16 ? 4 : 0) + (t.master != nullptr ? 8 : 0);
}

template <int COMBINATION>
void launch_adamw(const PlainTable& table, int blocks, cudaStream_t stream) {
  using P = std::conditional_t<(COMBINATION & 1) != 0, bf16, float>;
  using G = std::conditional_t<(COMBINATION & 2) != 0, bf16, float>;
  using S = std::conditional_t<(COMBINATION & 4) != 0, bf16, float>;
  adamw_kernel<P, G, S, (COMBINATION & 8) != 0><<<blocks, kThreads, 0, stream>>>(table);
  MOEBIUS_CUDA_CHECK_LAUNCH("adamw");
}

template <int... COMBINATIONS>
void launch_combination(int combination, const PlainTable& table, int blocks, cudaStream_t stream,
                        std::integer_sequence<int, COMBINATIONS...>) {
  ((combination == COMBINATIONS ? launch_adamw<COMBINATIONS>(table, blocks, stream) : void()), ...);
}

struct SumEntry {
  const void* data;
  int64_t size;
  bool is_bf16;
};

using SumTable = TensorTable<SumEntry, kMostTensors>;

// Sum over the block in double; thread 0 gets it. `shared`: one value per warp.
__device__ __forceinline__ double sum_block(double x, double* shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) sum += shared[w];
  }
  return sum;
}

// A thread sums the squares of 32 elements in fp32, then goes on in double.
template <class T>
__device__ double square_sum(const T* data, int64_t size) {
  constexpr int N = 16 / sizeof(T), kInFlight = 4;
  const int64_t whole = reinterpret_cast<uintptr_t>(data) % 16 == 0 ? size / N : 0;  // accesses
  double total = 0.0;
  for (int64_t first = threadIdx.x; first < whole; first += kThreads * kInFlight) {
    Pack<T, N> held[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t chunk = first + i * kThreads;
      held[i] = chunk < whole ? load_pack<T, N>(data + chunk * N) : zero_pack<T, N>();
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      float x[N];
      unpack(held[i], x);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += x[j] * x[j];
    }
    total += sum;
  }
  for (int64_t i = whole * N + threadIdx.x; i < size; i += kThreads) {
    const float x = to_float(data[i]);
    total += x * x;
  }
  return total;
}

__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(const __grid_constant__ SumTable table,
                       double* __restrict__ partial) {  // (gridDim.x) out
  __shared__ double shared[kThreads / 32];
  const int index = find_tensor(table, blockIdx.x);
  const SumEntry& t = table.tensors[index];
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_block[index]) * kSumPiece;
  const int64_t size = min(kSumPiece, t.size - begin);
  const double mine = t.is_bf16 ? square_sum(static_cast<const bf16*>(t.data) + begin, size)
                                : square_sum(static_cast<const float*>(t.data) + begin, size);
  const double sum = sum_block(mine, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024) sum_partials_kernel(const double* __restrict__ partial, int64_t count,
                                                            float* __restrict__ out) {  // (1)
  __shared__ double shared[32];
  double mine = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += 1024) mine += partial[i];
  const double sum = sum_block(mine, shared);
  if (threadIdx.x == 0) *out = static_cast<float>(sum);
}

}  // namespace

void adamw(const AdamWArgs& a, Stream stream) {
  constexpr int kCombinations = 16;
  PlainTable table{};
  const auto entry_of = [&](const AdamWTensor& t) {
    return AdamWEntry{t.param,
                      t.master,
                      t.grad,
                      t.m,
                      t.v,
                      t.size,
                      t.scalar_index,
                      adamw_step_size(t.lr, a.correction1),
                      adamw_shrink(t.lr, t.weight_decay)};
  };
  launch_adamw_tables(table, a, kCombinations, kPiece, combination_of, entry_of,
                      [&](int combination, int blocks) {
                        launch_combination(combination, table, blocks, cuda_stream(stream),
                                           std::make_integer_sequence<int, kCombinations>{});
                      });
}

void sum_squares(const SumSquaresArgs& a, Stream stream) {
  int64_t total_blocks = 0;
  for (const GradTensor& t : a.tensors) total_blocks += ceil_div(t.size, kSumPiece);
  double* partial =
      scratch_of<double>(static_cast<size_t>(std::max<int64_t>(1, total_blocks)), cuda_stream(stream));
  SumTable table{};
  int64_t done = 0;
  const auto entry_of = [](const GradTensor& t) { return SumEntry{t.data, t.size, t.dtype == DType::bf16}; };
  launch_tables(table, a.tensors, kSumPiece, entry_of, [&](int64_t blocks) {
    sum_squares_kernel<<<grid_size(blocks), kThreads, 0, cuda_stream(stream)>>>(table, partial + done);
    MOEBIUS_CUDA_CHECK_LAUNCH("sum_squares");
    done += blocks;
  });
  sum_partials_kernel<<<1, 1024, 0, cuda_stream(stream)>>>(partial, total_blocks, a.out);
  MOEBIUS_CUDA_CHECK_LAUNCH("sum_partials");
}

}  // namespace moebius::kernels::cuda
