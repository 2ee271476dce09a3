#include "kernels/cpu/gemm_tile.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <utility>

// Functions of this file alone may use AVX512-BF16; they run only after has_fast_avx512_bf16() said so. An
// attribute per function (not a flag per file) keeps the instructions out of anything that the linker could
// share with other files.
#define MOEBIUS_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define MOEBIUS_BF16_INLINE MOEBIUS_BF16 __attribute__((always_inline)) inline

namespace moebius::kernels::cpu {
namespace {

constexpr int kTileRows = 14;
constexpr int kTileCols = 32;

// The zero-masked forms, because g++ 12 warns of uninitialised values inside the plain ones.
MOEBIUS_BF16_INLINE __m512 widen(__m256i v, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, _mm512_maskz_cvtepu16_epi32(mask, v), 16));
}

MOEBIUS_BF16_INLINE void store_half(__m512 v, __mmask16 mask, const TileArgs& t, int64_t offset) {
  if (t.store == TileStore::f32 || t.store == TileStore::f32_add) {
    float* p = static_cast<float*>(t.c) + offset;
    if (t.store == TileStore::f32_add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, p));
    _mm512_mask_storeu_ps(p, mask, v);
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(t.c) + offset;
  if (t.store == TileStore::bf16_add) v = _mm512_add_ps(v, widen(_mm256_maskz_loadu_epi16(mask, p), mask));
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

MOEBIUS_BF16_INLINE void store_row(__m512 v0, __m512 v1, __mmask32 mask, const TileArgs& t, int64_t r) {
  if (t.store == TileStore::bf16 && mask == 0xFFFFFFFFu) {
    _mm512_storeu_si512(static_cast<uint16_t*>(t.c) + r * t.c_stride, (__m512i)_mm512_cvtne2ps_pbh(v1, v0));
    return;
  }
  store_half(v0, static_cast<__mmask16>(mask), t, r * t.c_stride);
  store_half(v1, static_cast<__mmask16>(mask >> 16), t, r * t.c_stride + kTileCols / 2);
}

MOEBIUS_BF16_INLINE void multiply_add(const float* a, __m512bh b0, __m512bh b1, __m512& c0, __m512& c1) {
  int pair;
  __builtin_memcpy(&pair, a, sizeof(pair));
  const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
  c0 = _mm512_dpbf16_ps(c0, v, b0);
  c1 = _mm512_dpbf16_ps(c1, v, b1);
}

template <int64_t row_stride, int64_t word_stride, size_t... rows>
MOEBIUS_BF16_INLINE void tile(const TileArgs& t, std::index_sequence<rows...>) {
  __m512 c0[sizeof...(rows)] = {((void)rows, _mm512_setzero_ps())...};
  __m512 c1[sizeof...(rows)] = {((void)rows, _mm512_setzero_ps())...};
  const float* a = t.a;
  const float* b = t.b;
  for (int64_t w = 0; w < t.num_words; ++w, a += word_stride, b += kTileCols) {
    const __m512bh b0 = (__m512bh)_mm512_load_ps(b), b1 = (__m512bh)_mm512_load_ps(b + kTileCols / 2);
    (multiply_add(a + static_cast<int64_t>(rows) * row_stride, b0, b1, c0[rows], c1[rows]), ...);
  }
  const __mmask32 mask = t.cols >= kTileCols ? 0xFFFFFFFFu : (1u << t.cols) - 1u;
  (store_row(c0[rows], c1[rows], mask, t, rows), ...);
}

template <int num_rows>
MOEBIUS_BF16 void tile_by_row(const TileArgs& t) {
  tile<kPanelStride, 1>(t, std::make_index_sequence<num_rows>());
}

template <int num_rows>
MOEBIUS_BF16 void tile_by_k(const TileArgs& t) {
  tile<1, kTileRows>(t, std::make_index_sequence<num_rows>());
}

template <size_t... rows>
constexpr TileTable make_tiles(std::index_sequence<rows...>) {
  return {{nullptr, tile_by_row<static_cast<int>(rows) + 1>...},
          {nullptr, tile_by_k<static_cast<int>(rows) + 1>...}};
}

}  // namespace

bool has_fast_avx512_bf16() {
  // Intel's cores take the dot product as two operations: half the arithmetic of fp32's multiply-add
  // (measured 84 against 170 GFLOP/s on a Sapphire Rapids core). There bf16 is widened to fp32 tiles instead,
  // where AMX is not to be had. By vendor, not by measuring: the same machine must always sum in one order.
  static const bool has = __builtin_cpu_is("intel") == 0 && __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
  return has;
}

const TileTable& avx512_bf16_tiles() {
  static constexpr TileTable table = make_tiles(std::make_index_sequence<kTileRows>());
  return table;
}

}  // namespace moebius::kernels::cpu

#else

namespace moebius::kernels::cpu {

bool has_fast_avx512_bf16() {
  return false;
}

const TileTable& avx512_bf16_tiles() {
  static constexpr TileTable table{};
  return table;
}

}  // namespace moebius::kernels::cpu

#endif
