#include "kernels/cpu/fetch_ahead.h"
#include "kernels/cpu/int8_tile.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include <utility>

// Attributes per function, not flags per file, for the reason that gemm_tile_avx512bf16.cpp gives.
#define MOEBIUS_VNNI512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define MOEBIUS_VNNI512_INLINE MOEBIUS_VNNI512 __attribute__((always_inline)) inline
#define MOEBIUS_VNNI256 __attribute__((target("avx2,avxvnni")))
#define MOEBIUS_VNNI256_INLINE MOEBIUS_VNNI256 __attribute__((always_inline)) inline

namespace moebius::kernels::cpu {
namespace {

constexpr int kCols = 32, kWordBytes = 4 * kCols;

int word_at(const uint8_t* a) {
  int word;
  __builtin_memcpy(&word, a, sizeof(word));
  return word;
}

// ---- AVX512-VNNI: 14 x 32, two vectors of 16 columns per row

// Few rows leave registers for independent sums, and need them: a dot product takes five cycles, and two can
// begin in each.
constexpr int sums_of(int rows) {
  return rows == 1 ? 4 : rows <= 3 ? 3 : rows <= 6 ? 2 : 1;
}

MOEBIUS_VNNI512_INLINE void multiply_add(const uint8_t* a, __m512i b0, __m512i b1, __m512i& c0, __m512i& c1) {
  const __m512i v = _mm512_set1_epi32(word_at(a));
  c0 = _mm512_dpbusd_epi32(c0, v, b0);
  c1 = _mm512_dpbusd_epi32(c1, v, b1);
}

template <size_t... rows>
MOEBIUS_VNNI512_INLINE void step(const uint8_t* a, const int8_t* b, __m512i* c0, __m512i* c1,
                                 std::index_sequence<rows...>) {
  const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + 64);
  (multiply_add(a + static_cast<int64_t>(rows) * kInt8RowStride, b0, b1, c0[rows], c1[rows]), ...);
}

MOEBIUS_VNNI512_INLINE void store(const Int8TileArgs& t, size_t row, __m512i c0, __m512i c1) {
  int32_t* c = t.c + row * kCols;
  if (t.add) {
    c0 = _mm512_add_epi32(c0, _mm512_load_si512(c));
    c1 = _mm512_add_epi32(c1, _mm512_load_si512(c + 16));
  }
  _mm512_store_si512(c, c0);
  _mm512_store_si512(c + 16, c1);
}

template <int num_sums, size_t... rows>
MOEBIUS_VNNI512_INLINE void tile512(const Int8TileArgs& t, std::index_sequence<rows...> sequence) {
  constexpr size_t kRows = sizeof...(rows);
  __m512i c0[num_sums][kRows], c1[num_sums][kRows];
  for (int s = 0; s < num_sums; ++s) {
    ((c0[s][rows] = _mm512_setzero_si512(), c1[s][rows] = _mm512_setzero_si512()), ...);
  }
  const uint8_t* a = t.a;
  const int8_t* b = t.b;
  const char* next = reinterpret_cast<const char*>(t.next);
  for (int64_t w = 0; w < t.num_words; w += 4, a += 16, b += 4 * kWordBytes) {
    if constexpr (kRows <= 7) {  // what so few rows wait for is B
      const char* const ahead = reinterpret_cast<const char*>(b);
      for (int line = 0; line < 8; ++line) {
        _mm_prefetch(ahead + kFarAhead + 64 * line, _MM_HINT_T1);
        _mm_prefetch(ahead + kNearAhead + 64 * line, _MM_HINT_T0);
      }
    } else {
      for (int64_t line = 0; line < t.next_lines; ++line, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
    step(a, b, c0[0], c1[0], sequence);
    step(a + 4, b + kWordBytes, c0[1 % num_sums], c1[1 % num_sums], sequence);
    step(a + 8, b + 2 * kWordBytes, c0[2 % num_sums], c1[2 % num_sums], sequence);
    step(a + 12, b + 3 * kWordBytes, c0[3 % num_sums], c1[3 % num_sums], sequence);
  }
  for (int s = 1; s < num_sums; ++s) {
    ((c0[0][rows] = _mm512_add_epi32(c0[0][rows], c0[s][rows]),
      c1[0][rows] = _mm512_add_epi32(c1[0][rows], c1[s][rows])),
     ...);
  }
  (store(t, rows, c0[0][rows], c1[0][rows]), ...);
}

template <int num_rows>
MOEBIUS_VNNI512 void avx512_tile(const Int8TileArgs& t) {
  tile512<sums_of(num_rows)>(t, std::make_index_sequence<num_rows>());
}

// ---- AVX-VNNI: 6 x 16, twice

MOEBIUS_VNNI256_INLINE void multiply_add(const uint8_t* a, __m256i b0, __m256i b1, __m256i& c0, __m256i& c1) {
  const __m256i v = _mm256_set1_epi32(word_at(a));
  c0 = _mm256_dpbusd_avx_epi32(c0, v, b0);
  c1 = _mm256_dpbusd_avx_epi32(c1, v, b1);
}

MOEBIUS_VNNI256_INLINE void store(int32_t* p, __m256i v, bool add) {
  auto* const to = reinterpret_cast<__m256i*>(p);
  _mm256_store_si256(to, add ? _mm256_add_epi32(v, _mm256_load_si256(to)) : v);
}

template <size_t... rows>
MOEBIUS_VNNI256_INLINE void tile256(const Int8TileArgs& t, std::index_sequence<rows...>) {
  for (int half = 0; half < 2; ++half) {
    __m256i c0[sizeof...(rows)] = {((void)rows, _mm256_setzero_si256())...};
    __m256i c1[sizeof...(rows)] = {((void)rows, _mm256_setzero_si256())...};
    const uint8_t* a = t.a;
    const int8_t* b = t.b + half * kWordBytes / 2;
    for (int64_t w = 0; w < t.num_words; ++w, a += 4, b += kWordBytes) {
      const __m256i b0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(b)),
                    b1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(b + 32));
      (multiply_add(a + static_cast<int64_t>(rows) * kInt8RowStride, b0, b1, c0[rows], c1[rows]), ...);
    }
    int32_t* const c = t.c + half * kCols / 2;
    ((store(c + rows * kCols, c0[rows], t.add), store(c + rows * kCols + 8, c1[rows], t.add)), ...);
  }
}

template <int num_rows>
MOEBIUS_VNNI256 void avx_tile(const Int8TileArgs& t) {
  tile256(t, std::make_index_sequence<num_rows>());
}

}  // namespace

const Int8TileTable* avx512_vnni_tiles() {
  static constexpr Int8TileTable table = {
      "AVX512-VNNI",
      14,
      {nullptr, avx512_tile<1>, avx512_tile<2>, avx512_tile<3>, avx512_tile<4>, avx512_tile<5>,
       avx512_tile<6>, avx512_tile<7>, avx512_tile<8>, avx512_tile<9>, avx512_tile<10>, avx512_tile<11>,
       avx512_tile<12>, avx512_tile<13>, avx512_tile<14>}};
  static const bool has = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has ? &table : nullptr;
}

const Int8TileTable* avx_vnni_tiles() {
  static constexpr Int8TileTable table = {
      "AVX-VNNI", 6, {nullptr, avx_tile<1>, avx_tile<2>, avx_tile<3>, avx_tile<4>, avx_tile<5>, avx_tile<6>}};
  // g++ 12 has no name for it: bit 4 of eax of leaf 7, subleaf 1. The system saves 256-bit registers where it
  // lets AVX2 be seen.
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx2") || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
    return (a >> 4 & 1u) != 0;
  }();
  return has ? &table : nullptr;
}

}  // namespace moebius::kernels::cpu

#else

namespace moebius::kernels::cpu {

const Int8TileTable* avx512_vnni_tiles() {
  return nullptr;
}
const Int8TileTable* avx_vnni_tiles() {
  return nullptr;
}

}  // namespace moebius::kernels::cpu

#endif
