// Register tiles of the CPU's int8 product: C(rows, 32) = A(rows, k) x B(k, 32) in 32-bit integers, from a
// panel of A (bytes code + 128) and a packed panel of B (kernels/api/int8_gemm.h). Sums wrap modulo 2^32,
// which the correction of the 128 undoes, so that every table gives the same integers.
#pragma once

#include <cstdint>

namespace moebius::kernels::cpu {

// Bytes of one row in a panel of A: the longest sum of one call, plus one cache line so that the rows do not
// fall on the same cache set.
inline constexpr int64_t kInt8TileK = 4096;
inline constexpr int64_t kInt8RowStride = kInt8TileK + 64;

struct Int8TileArgs {
  const uint8_t* a;   // [row][kInt8RowStride], aligned to 64
  const int8_t* b;    // [k / 4][32][4], aligned to 64
  int64_t num_words;  // k / 4, a multiple of 4, at least 4
  int32_t* c;         // [row][32], aligned to 64
  bool add;           // to c
  // What will be read next, to be fetched into the second-level cache meanwhile: this many lines for each
  // four words. Tables may leave it undone, as those of few rows do, which fetch what follows b instead.
  const int8_t* next;
  int64_t next_lines;
};

using Int8TileFn = void (*)(const Int8TileArgs&);

inline constexpr int kInt8MostRows = 32;
// Below this many rows AMX tiles gain nothing over dot products.
inline constexpr int kInt8AmxFewestRows = 4;

struct Int8TileTable {
  const char* name;
  int rows;                             // of the largest tile
  Int8TileFn tiles[kInt8MostRows + 1];  // [r] computes r rows, 1 <= r <= rows
  // Tiles of a multiple of this many rows cost no more than smaller ones. Rows of A and of the sums past r,
  // up to the next multiple, may be read and written.
  int row_step = 1;
  // Around the tiles of one thread, or null.
  void (*begin)() = nullptr;
  void (*end)() = nullptr;

  // Where tile `i` begins when `count` rows of a result, of `digits` rows of A each, are spread over tiles.
  int64_t begin_of(int64_t i, int64_t num_tiles, int64_t count, int64_t digits) const {
    const int64_t step = digits < row_step ? row_step / digits : 1;
    return i == num_tiles ? count : i * ((count + step - 1) / step) / num_tiles * step;
  }
};

// Null where the processor lacks the instructions, or the system does not grant AMX.
const Int8TileTable* amx_int8_tiles();
const Int8TileTable* avx512_vnni_tiles();
const Int8TileTable* avx_vnni_tiles();
// By 16-bit multiply-and-add with Highway, or plain C++.
const Int8TileTable& portable_int8_tiles();

// The fastest of this processor, unless a test has chosen another.
const Int8TileTable& int8_tiles();
void set_int8_tiles(const Int8TileTable* table);  // null: the fastest again

}  // namespace moebius::kernels::cpu
