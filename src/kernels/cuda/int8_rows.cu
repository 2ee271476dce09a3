// Rows of floats to int8 codes with a scale each (kernels/api/int8_gemm.h), in one pass: a row stays in the
// registers of its threads between its largest magnitude and its codes, unless it is too long for that.
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

// As in kernels/api/int8_format.h, bit for bit; divisions are IEEE's.
__device__ __forceinline__ float scale_of_bits(uint32_t range_bits) {
  if (range_bits >= 0x7f800000u) return __uint_as_float(0x7fc00000u);
  const float scale = __fdiv_rn(__uint_as_float(range_bits), static_cast<float>(kInt8Levels));
  return scale >= kSmallestScale ? scale : 0.0f;
}
__device__ __forceinline__ float inverse_of(float scale) {
  return scale >= kSmallestScale ? __frcp_rn(scale) : 0.0f;
}
__device__ __forceinline__ int32_t code_of_value(float x, float inverse) {
  const float most = static_cast<float>(kInt8Levels);
  return __float2int_rn(fminf(fmaxf(__fmul_rn(x, inverse), -most), most));
}

// N codes as one access.
template <int N>
struct alignas(N) Codes {
  int8_t at[N];
};

struct RowsParams {
  const int32_t* index;  // or null
  FastDivisor divisor;
  uint8_t* codes;
  float* scales;
  float static_scale;  // 0: each row's own
  int64_t num_rows, x_stride, codes_stride;
  int width;
  const int32_t* valid_rows;
  const float* column_scales;
  const int32_t* offsets;
  int num_groups;
  bool product_follows;
};

// Group of a sorted row, by a whole warp.
__device__ __forceinline__ int group_of_row(const int32_t* offsets, int num_groups, int64_t row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int group = 0;
  for (int first = 1; first < num_groups; first += 32) {
    const int g = first + lane;
    group += __popc(__ballot_sync(0xffffffffu, g < num_groups && __ldg(offsets + g) <= row));
  }
  return group;
}

// A block is (threads of a row, rows). CHUNKS: accesses of N elements that a thread keeps; 0: it reads them
// again.
template <class T, int N, int CHUNKS, int DIGITS>
__global__ void __launch_bounds__(256) int8_rows_kernel(const T* __restrict__ x, const RowsParams p) {
  __shared__ uint32_t shared[8];
  wait_for_kernel_before();
  if (p.product_follows) allow_next_kernel();  // it waits for the codes
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool counts = row < p.num_rows && (p.valid_rows == nullptr || row < *p.valid_rows);
  int64_t source = row;
  if (counts && p.index != nullptr) {
    const int32_t slot = p.index[row];
    source = slot < 0 ? -1 : static_cast<int64_t>(divide(static_cast<uint32_t>(slot), p.divisor));
  }
  const bool present = counts && source >= 0;
  const T* from = x + (present ? source : 0) * p.x_stride;
  const float* factors = nullptr;
  if (p.column_scales != nullptr && counts)
    factors = p.column_scales + static_cast<int64_t>(group_of_row(p.offsets, p.num_groups, row)) * p.width;
  const int threads = static_cast<int>(blockDim.x);
  // Rows are kept as they come, half of the registers of floats.
  const auto value = [&](const Pack<T, N>& pack, int column, float(&v)[N]) {
    unpack(pack, v);
    if (factors == nullptr) return;
    float f[N];
    load_floats(factors + column, f);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = __fmul_rn(v[i], f[i]);
  };
  constexpr int kKept = CHUNKS == 0 ? 1 : CHUNKS;
  Pack<T, N> kept[kKept];
  uint32_t most = 0;
  if (present) {
    const auto look = [&](const Pack<T, N>& pack, int column) {
      float v[N];
      value(pack, column, v);
#pragma unroll
      for (int i = 0; i < N; ++i) most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
    };
    if constexpr (CHUNKS == 0) {
      for (int column = threadIdx.x * N; column < p.width; column += threads * N)
        look(load_pack<T, N>(from + column), column);
    } else {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        const int column = (threadIdx.x + c * threads) * N;
        if (column < p.width) kept[c] = load_pack<T, N>(from + column);
      }
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        const int column = (threadIdx.x + c * threads) * N;
        if (column < p.width) look(kept[c], column);
      }
    }
  }
  most = __reduce_max_sync(0xffffffffu, most);
  if (threads > 32) {  // then a block has one row
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < threads / 32; ++w) most = max(most, shared[w]);
  }
  if (!counts) return;
  float scale = scale_of_bits(most);
  if (p.static_scale > 0.0f && present && scale == scale) scale = p.static_scale;
  const float inverse = inverse_of(scale), rest_scale = scale / 254.0f;
  const float rest_inverse = inverse > 0.0f ? inverse_of(rest_scale) : 0.0f;
  if (threadIdx.x == 0) {
    p.scales[row] = scale;
    if constexpr (DIGITS == 2) p.scales[p.num_rows + row] = rest_scale;
  }
  uint8_t* codes = p.codes + row * p.codes_stride;
  uint8_t* rest = codes + p.num_rows * p.codes_stride;
  const auto store = [&](int column, const Pack<T, N>& pack) {
    Codes<N> first, second;
    float v[N];
    if (present) value(pack, column, v);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int32_t code = present && inverse > 0.0f ? code_of_value(v[i], inverse) : 0;
      first.at[i] = static_cast<int8_t>(code);
      if constexpr (DIGITS == 2)
        second.at[i] = static_cast<int8_t>(
            rest_inverse > 0.0f
                ? code_of_value(__fmaf_rn(-static_cast<float>(code), scale, v[i]), rest_inverse)
                : 0);
    }
    *reinterpret_cast<Codes<N>*>(codes + column) = first;
    if constexpr (DIGITS == 2) *reinterpret_cast<Codes<N>*>(rest + column) = second;
  };
  if constexpr (CHUNKS == 0) {
    for (int column = threadIdx.x * N; column < p.width; column += threads * N) {
      if (present) kept[0] = load_pack<T, N>(from + column);
      store(column, kept[0]);
    }
  } else {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int column = (threadIdx.x + c * threads) * N;
      if (column < p.width) store(column, kept[c]);
    }
  }
  for (int column = p.width + threadIdx.x; column < p.codes_stride; column += threads) {
    codes[column] = 0;
    if constexpr (DIGITS == 2) rest[column] = 0;
  }
}

// Scales as the product reads them; a thread per column.
__global__ void __launch_bounds__(256)
    int8_scales_kernel(const float* __restrict__ scales, float* __restrict__ out, int64_t count, int64_t n,
                       int64_t padded_n, bool one_scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  const int64_t group = i / padded_n, column = i % padded_n;
  out[i] = column >= n ? 0.0f : scales[one_scale ? 0 : group * n + column];
}

// May begin before the kernel before it in the stream has ended, where that one allows it.
template <class Kernel, class... Args>
void launch_behind(Kernel* kernel, int blocks, dim3 block, cudaStream_t stream, Args... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = block;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = compute_major() >= 9 ? 1 : 0;
  MOEBIUS_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}

}  // namespace

void int8_rows(const Int8RowsArgs& a, Stream stream) {
  MOEBIUS_CHECK_GE(a.codes_stride, int8_padded_k(a.width));
  MOEBIUS_CHECK_GE(a.index_divisor, 1);
  MOEBIUS_CHECK(a.digits == 1 || (a.digits == 2 && a.static_scale == nullptr), a.digits, " digits");
  MOEBIUS_CHECK(a.column_scales == nullptr || (a.offsets != nullptr && a.num_groups >= 1),
                "factors of columns without groups");
  MOEBIUS_CHECK_LE(a.width, INT32_MAX / 2);
  if (a.num_rows == 0) return;
  RowsParams p{};
  p.index = a.index;
  p.divisor = fast_divisor(a.index_divisor);
  p.codes = a.codes;
  p.scales = a.scales;
  p.static_scale = a.static_scale == nullptr ? 0.0f : *a.static_scale;
  p.num_rows = a.num_rows;
  p.x_stride = a.x_stride;
  p.codes_stride = a.codes_stride;
  p.width = static_cast<int>(a.width);
  p.valid_rows = a.valid_rows;
  p.column_scales = a.column_scales;
  p.offsets = a.offsets;
  p.num_groups = static_cast<int>(a.num_groups);
  p.product_follows = a.product_follows;
  with_dtype(a.dtype, [&]<class T>(T) {
    const bool strides_fit =
        a.x_stride % (16 / static_cast<int64_t>(sizeof(T))) == 0 && a.codes_stride % 16 == 0;
    const int elements =
        strides_fit ? vector_elements(a.width, sizeof(T), {a.x, a.codes, a.column_scales}) : 1;
    with_vector<T>(elements, [&]<int N>(Constant<N>) {
      const RowShape shape = row_shape(ceil_div(std::max<int64_t>(a.width, 1), N), 4, 256);
      const dim3 block(shape.threads_per_row, shape.threads_per_row > 32 ? 1 : shape.rows_per_block);
      const int blocks = grid_size(ceil_div(a.num_rows, block.y));
      with_chunks(shape.chunks_per_thread, [&]<int CHUNKS>(Constant<CHUNKS>) {
        const auto launch = [&]<int DIGITS>(Constant<DIGITS>) {
          launch_behind(int8_rows_kernel<T, N, CHUNKS, DIGITS>, blocks, block, cuda_stream(stream),
                        static_cast<const T*>(a.x), p);
        };
        a.digits == 2 ? launch(Constant<2>{}) : launch(Constant<1>{});
      });
    });
  });
  MOEBIUS_CUDA_CHECK_LAUNCH("int8_rows");
}

void int8_pack(const Int8PackArgs& args, Stream stream) {
  MOEBIUS_CHECK_LE(args.k, kInt8MaxK);
  MOEBIUS_CHECK(args.columns == Int8Columns::plain || args.n % 2 == 0, "gate and up of ", args.n, " rows");
  const auto n = static_cast<size_t>(args.n), k = static_cast<size_t>(args.k);
  const auto padded_n = static_cast<size_t>(int8_padded_n(args.n, Int8Layout::rows)),
             padded_k = static_cast<size_t>(int8_padded_k(args.k));
  const int64_t columns = args.num_groups * static_cast<int64_t>(padded_n);
  if (columns == 0) return;
  MOEBIUS_CUDA_CHECK(cudaMemsetAsync(
      args.packed, 0, static_cast<size_t>(args.num_groups) * padded_n * padded_k, cuda_stream(stream)));
  if (k > 0) {
    const bool whole = n == padded_n;  // then the groups lie as one
    for (int64_t g = 0; g < (whole ? 1 : args.num_groups); ++g)
      MOEBIUS_CUDA_CHECK(cudaMemcpy2DAsync(args.packed + static_cast<size_t>(g) * padded_n * padded_k,
                                           padded_k, args.codes + static_cast<size_t>(g) * n * k, k, k,
                                           whole ? n * static_cast<size_t>(args.num_groups) : n,
                                           cudaMemcpyDeviceToDevice, cuda_stream(stream)));
  }
  int8_scales_kernel<<<grid_size(ceil_div(columns, 256)), 256, 0, cuda_stream(stream)>>>(
      args.scales, args.packed_scales, columns, args.n, static_cast<int64_t>(padded_n), args.one_scale);
  MOEBIUS_CUDA_CHECK_LAUNCH("int8_scales");
}

}  // namespace moebius::kernels::cuda
