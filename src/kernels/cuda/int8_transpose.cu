// Transposes matrices of bytes: tiles of 128 x 128 through shared memory, 16-byte accesses to global memory
// on both sides, 4 x 4 blocks of bytes turned in registers.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kTile = 128;
// Bytes `at` of four words as one word.
__device__ __forceinline__ uint32_t byte_of_each(const uint32_t (&words)[4], int at) {
  const uint32_t select = static_cast<uint32_t>(at) | (static_cast<uint32_t>(4 + at) << 4);
  return __byte_perm(__byte_perm(words[0], words[1], select), __byte_perm(words[2], words[3], select),
                     0x5410);
}

// 256 threads. Grid: (tiles along k, tiles along n, groups).
__global__ void __launch_bounds__(256)
    int8_transpose_kernel(const uint8_t* __restrict__ from, uint8_t* __restrict__ to, int n, int k) {
  // Chunk c of 16 bytes of row r lies at c ^ (r / 16), so that both sides touch all banks.
  __shared__ uint4 tile[kTile][kTile / 16];
  const int64_t matrix = static_cast<int64_t>(blockIdx.z) * n * k;
  const int n0 = blockIdx.y * kTile, k0 = blockIdx.x * kTile, thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 32 * i, chunk = thread % 8;
    uint4 x{0, 0, 0, 0};
    if (n0 + row < n && k0 + 16 * chunk < k)
      x = *reinterpret_cast<const uint4*>(from + matrix + static_cast<int64_t>(n0 + row) * k + k0 +
                                          16 * chunk);
    tile[row][chunk ^ (row / 16)] = x;
  }
  __syncthreads();
  // A thread makes 16 bytes along n of four rows of the result, from words of 4 bytes along k of 16 rows of
  // the tile.
  const int n16 = thread % 8, k4 = thread / 8;
  uint32_t out[4][4];
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    uint32_t in[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      in[i] = reinterpret_cast<const uint32_t*>(&tile[16 * n16 + 4 * part + i][(k4 / 4) ^ n16])[k4 % 4];
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j][part] = byte_of_each(in, j);
  }
  const int column = n0 + 16 * n16;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int row = k0 + 4 * k4 + j;
    if (row < k && column < n)
      *reinterpret_cast<uint4*>(to + matrix + static_cast<int64_t>(row) * n + column) =
          uint4{out[j][0], out[j][1], out[j][2], out[j][3]};
  }
}

}  // namespace

void int8_transpose(const Int8TransposeArgs& a, Stream stream) {
  MOEBIUS_CHECK(a.n % kInt8StepK == 0 && a.k % kInt8StepK == 0 && a.n < INT32_MAX / 2 && a.k < INT32_MAX / 2,
                "transposing ", a.n, " x ", a.k);
  MOEBIUS_CHECK(a.num_groups <= 65535 && ceil_div(a.n, kTile) <= 65535, a.num_groups, " matrices of ", a.n,
                " rows");
  if (a.num_groups == 0 || a.n == 0 || a.k == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.k, kTile)), static_cast<unsigned>(ceil_div(a.n, kTile)),
                  static_cast<unsigned>(a.num_groups));
  int8_transpose_kernel<<<grid, 256, 0, cuda_stream(stream)>>>(reinterpret_cast<const uint8_t*>(a.codes),
                                                               reinterpret_cast<uint8_t*>(a.out),
                                                               static_cast<int>(a.n), static_cast<int>(a.k));
  MOEBIUS_CUDA_CHECK_LAUNCH("int8_transpose");
}

}  // namespace moebius::kernels::cuda
