#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/gemm_amx_routines.h"

// g++ 12 warns of uninitialised values inside its own AVX-512 header.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>

// As in gemm_tile_avx512bf16.cpp: the instructions are allowed per function, and run only after a look at the
// processor.
#define MOEBIUS_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define MOEBIUS_AMX_INLINE MOEBIUS_AMX __attribute__((always_inline)) inline

namespace moebius::kernels::cpu {
namespace {

MOEBIUS_AMX_INLINE __mmask16 first(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1u);
}

MOEBIUS_AMX_INLINE __mmask32 first32(int64_t count) {
  return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0 : (1u << count) - 1u;
}

// rows[i] lane j becomes rows[j] lane i.
MOEBIUS_AMX_INLINE void transpose_16x16(__m512i (&rows)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // b[4g + c] holds, in its 128-bit part p, column 4p + c of rows 4g .. 4g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x44),
                  high01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xEE);
    const __m512i low23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x44),
                  high23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xEE);
    rows[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    rows[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xDD);
    rows[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    rows[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xDD);
  }
}

MOEBIUS_AMX void transpose(const TransposeArgs& t) {
  const __mmask32 mask = first32(t.num_elements - t.offset >= 32 ? 32 : t.num_elements - t.offset);
  __m512i rows[16];
  for (int r = 0; r < 16; ++r)
    rows[r] = r < t.num_rows ? _mm512_maskz_loadu_epi16(mask, t.rows[r] + t.offset) : _mm512_setzero_si512();
  transpose_16x16(rows);
  for (int w = 0; w < 16; ++w) _mm512_storeu_si512(t.dst + w * t.stride, rows[w]);
}

MOEBIUS_AMX_INLINE __m512i joined(const JoinArgs& t, int64_t w, __mmask16 cols) {
  __m512i word = _mm512_setzero_si512();
  if (2 * w < t.num_rows)
    word = _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_maskz_loadu_epi16(cols, t.rows[2 * w] + t.col));
  if (2 * w + 1 < t.num_rows)
    word = _mm512_or_si512(
        word, _mm512_maskz_slli_epi32(0xFFFF,
                                      _mm512_maskz_cvtepu16_epi32(
                                          0xFFFF, _mm256_maskz_loadu_epi16(cols, t.rows[2 * w + 1] + t.col)),
                                      16));
  return word;
}

MOEBIUS_AMX void join(const JoinArgs& t) {
  const __mmask16 cols = first(t.num_cols);
  for (int w = 0; w < 16; ++w) _mm512_storeu_si512(t.dst + w * t.stride, joined(t, w, cols));
}

MOEBIUS_AMX void join_transpose(const JoinArgs& t) {
  const __mmask16 cols = first(t.num_cols);
  __m512i rows[16];
  for (int w = 0; w < 16; ++w) rows[w] = joined(t, w, cols);
  transpose_16x16(rows);
  for (int j = 0; j < 16; ++j) _mm512_storeu_si512(t.dst + j * t.stride, rows[j]);
}

// Tiles 0 to 3 hold the sums, 4 and 5 rows of a, 6 and 7 columns of b.
template <bool two_rows, bool two_cols>
MOEBIUS_AMX_INLINE void multiply_tiles(const MultiplyArgs& t) {
  constexpr int kRow = 32 * sizeof(float);
  if (t.add) {
    _tile_loadd(0, t.c, kRow);
    if (two_cols) _tile_loadd(1, t.c + 16, kRow);
    if (two_rows) _tile_loadd(2, t.c + 16 * 32, kRow);
    if (two_rows && two_cols) _tile_loadd(3, t.c + 16 * 32 + 16, kRow);
  } else {
    _tile_zero(0);
    if (two_cols) _tile_zero(1);
    if (two_rows) _tile_zero(2);
    if (two_rows && two_cols) _tile_zero(3);
  }
  const int64_t a_row = t.a_stride * 4;
  const uint32_t* a = t.a;
  const uint32_t* b = t.b;
  for (int64_t w = 0; w < t.num_words; w += 16, a += 16, b += 16 * 32) {
    _tile_loadd(4, a, a_row);
    _tile_loadd(6, b, kRow);
    _tile_dpbf16ps(0, 4, 6);
    if (two_cols) {
      _tile_loadd(7, b + 16, kRow);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (two_rows) {
      _tile_loadd(5, a + 16 * t.a_stride, a_row);
      _tile_dpbf16ps(2, 5, 6);
      if (two_cols) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, t.c, kRow);
  if (two_cols) _tile_stored(1, t.c + 16, kRow);
  if (two_rows) _tile_stored(2, t.c + 16 * 32, kRow);
  if (two_rows && two_cols) _tile_stored(3, t.c + 16 * 32 + 16, kRow);
}

MOEBIUS_AMX void multiply(const MultiplyArgs& t) {
  if (t.two_rows) {
    t.two_cols ? multiply_tiles<true, true>(t) : multiply_tiles<true, false>(t);
  } else {
    t.two_cols ? multiply_tiles<false, true>(t) : multiply_tiles<false, false>(t);
  }
}

MOEBIUS_AMX_INLINE void store_half(const StoreArgs& t, const float* c, __mmask16 mask, int64_t offset) {
  __m512 v = _mm512_maskz_loadu_ps(mask, c);
  if (t.is_f32) {
    float* p = static_cast<float*>(t.out) + offset;
    if (t.add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, p));
    _mm512_mask_storeu_ps(p, mask, v);
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(t.out) + offset;
  if (t.add)
    v = _mm512_add_ps(v,
                      _mm512_castsi512_ps(_mm512_maskz_slli_epi32(
                          mask, _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p)), 16)));
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

MOEBIUS_AMX void store(const StoreArgs& t) {
  for (int64_t r = 0; r < t.rows; ++r) {
    store_half(t, t.c + r * 32, first(t.cols), r * t.out_stride);
    if (t.cols > 16) store_half(t, t.c + r * 32 + 16, first(t.cols - 16), r * t.out_stride + 16);
  }
}

bool processor_has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  const bool amx = (edx >> 22 & 1u) != 0;
  return amx && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const AmxRoutines* hardware_amx_routines() {
  static constexpr AmxRoutines table{set_up_amx_tiles, release_amx_tiles, transpose, join,
                                     join_transpose,   multiply,          store};
  static const bool usable = processor_has_amx() && has_amx_tiles();
  return usable ? &table : nullptr;
}

}  // namespace moebius::kernels::cpu

#else

namespace moebius::kernels::cpu {

const AmxRoutines* hardware_amx_routines() {
  return nullptr;
}

}  // namespace moebius::kernels::cpu

#endif
