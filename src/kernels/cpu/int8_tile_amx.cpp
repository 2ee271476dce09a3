#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/int8_tile.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

// Attributes per function, not flags per file, for the reason that gemm_tile_avx512bf16.cpp gives.
#define MOEBIUS_AMX_INT8 __attribute__((target("amx-tile,amx-int8,avx512f")))
#define MOEBIUS_AMX_INT8_INLINE MOEBIUS_AMX_INT8 __attribute__((always_inline)) inline

// TDPBUSD multiplies 16 rows of 64 unsigned bytes with 16 columns of 64 signed ones into 16 x 16 sums. Its
// right operand, 16 words along k of 16 columns of 4 codes, is what a panel of B already is.
namespace moebius::kernels::cpu {
namespace {

constexpr int64_t kAmxWords = 16;  // along k, in a tile
constexpr int kWordBytes = 4 * 32;
constexpr int kHalfBytes = kWordBytes / 2;

// Tiles 0 to 3 hold the sums, 4 and 5 rows of a, 6 and 7 columns of b.
template <bool two_rows>
MOEBIUS_AMX_INT8_INLINE void multiply_add(const uint8_t* a, const int8_t* b) {
  _tile_loadd(6, b, kWordBytes);
  _tile_loadd(4, a, kInt8RowStride);
  _tile_dpbusd(0, 4, 6);
  _tile_loadd(7, b + kHalfBytes, kWordBytes);
  _tile_dpbusd(1, 4, 7);
  if (two_rows) {
    _tile_loadd(5, a + 16 * kInt8RowStride, kInt8RowStride);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
}

template <bool two_rows>
MOEBIUS_AMX_INT8 void amx_tile(const Int8TileArgs& t) {
  if (t.add) {
    _tile_loadd(0, t.c, kWordBytes);
    _tile_loadd(1, t.c + 16, kWordBytes);
    if (two_rows) _tile_loadd(2, t.c + 16 * 32, kWordBytes);
    if (two_rows) _tile_loadd(3, t.c + 16 * 32 + 16, kWordBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (two_rows) _tile_zero(2);
    if (two_rows) _tile_zero(3);
  }
  const uint8_t* a = t.a;
  const int8_t* b = t.b;
  const char* next = reinterpret_cast<const char*>(t.next);
  int64_t w = 0;
  for (; w + kAmxWords <= t.num_words; w += kAmxWords, a += 4 * kAmxWords, b += kAmxWords * kWordBytes) {
    for (int64_t line = 0; line < 4 * t.next_lines; ++line, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    multiply_add<two_rows>(a, b);
  }
  if (w < t.num_words) {
    // Words past the last are zeros of B, so that it does not matter what A has there.
    alignas(64) int8_t rest[kAmxWords * kWordBytes];
    const size_t bytes = static_cast<size_t>((t.num_words - w) * kWordBytes);
    std::memcpy(rest, b, bytes);
    std::memset(rest + bytes, 0, sizeof(rest) - bytes);
    multiply_add<two_rows>(a, rest);
  }
  _tile_stored(0, t.c, kWordBytes);
  _tile_stored(1, t.c + 16, kWordBytes);
  if (two_rows) _tile_stored(2, t.c + 16 * 32, kWordBytes);
  if (two_rows) _tile_stored(3, t.c + 16 * 32 + 16, kWordBytes);
}

bool processor_has_int8_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 25 & 1u) != 0;
}

Int8TileTable make_table(const Int8TileTable& of_few_rows) {
  Int8TileTable table = {"AMX-INT8", 32, {}};
  table.row_step = 16;
  table.begin = set_up_amx_tiles;
  table.end = release_amx_tiles;
  for (int rows = 1; rows <= 32; ++rows)
    table.tiles[rows] = rows < kInt8AmxFewestRows ? of_few_rows.tiles[rows]
                        : rows <= 16              ? amx_tile<false>
                                                  : amx_tile<true>;
  return table;
}

}  // namespace

const Int8TileTable* amx_int8_tiles() {
  // Processors with AMX have AVX512-VNNI; a system that hides the latter gets neither.
  const Int8TileTable* const of_few_rows = avx512_vnni_tiles();
  static const bool has = processor_has_int8_tiles() && has_amx_tiles();
  if (of_few_rows == nullptr || !has) return nullptr;
  static const Int8TileTable table = make_table(*of_few_rows);
  return &table;
}

}  // namespace moebius::kernels::cpu

#else

namespace moebius::kernels::cpu {

const Int8TileTable* amx_int8_tiles() {
  return nullptr;
}

}  // namespace moebius::kernels::cpu

#endif
