// Register tiles of the CPU matrix product: C(rows, cols) (+)= A(rows, k) x B(k, kTileCols) from packed
// panels of 32-bit words. A word is one fp32 value, or a pair of bf16 values that follow each other along k.
#pragma once

#include <cstdint>

namespace moebius::kernels::cpu {

enum class TileStore : uint8_t { f32, f32_add, bf16, bf16_add };

struct TileArgs {
  const float* a;     // by_row: [row][kPanelStride]; by_k: [k][tile rows]
  const float* b;     // [k][tile cols], aligned to 64 bytes
  int64_t num_words;  // words along k
  void* c;            // row-major, `store` says its type and whether it is added to
  int64_t c_stride;   // elements
  int64_t cols;       // columns of C to write, at most the tile's
  TileStore store;
};

// Words of one row of a by_row panel: the longest sum in registers, plus one cache line so that the rows of a
// panel do not fall on the same cache set.
inline constexpr int64_t kMaxWords = 512;
inline constexpr int64_t kPanelStride = kMaxWords + 16;

using TileFn = void (*)(const TileArgs&);

// Tiles of 14 x 32 for bf16 pairs by AVX512-BF16's dot product; call only where has_fast_avx512_bf16().
// by_row[r] and by_k[r] compute r rows, 1 <= r <= 14.
struct TileTable {
  TileFn by_row[15];
  TileFn by_k[15];
};
bool has_fast_avx512_bf16();
const TileTable& avx512_bf16_tiles();

}  // namespace moebius::kernels::cpu
