// Launch geometry: how work is cut over blocks and threads. Pure host arithmetic, tested without a GPU.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "base/integers.h"

namespace moebius::kernels::cuda {

// Elements of one access: 16 bytes when every pointer is 16-byte aligned and the width is a multiple, else 1.
int vector_elements(int64_t width, int64_t element_bytes, std::initializer_list<const void*> pointers);

// A row of `chunks` accesses, each thread holding `chunks_per_thread` of them in registers.
struct RowShape {
  int threads_per_row;    // power of two from 32
  int rows_per_block;     // as many as make a block of 256 threads; 1 for longer rows
  int chunks_per_thread;  // 1, 2 or 4; 0: too many for registers, the row is read again
};

// The fewest threads for a row that leave each with at most `most_chunks` (1, 2 or 4); never more than
// `most_threads`.
RowShape row_shape(int64_t chunks, int most_chunks, int most_threads);

// Blocks of a kernel whose blocks walk over several groups of rows: as many as run at a time, not more than
// there is work for.
int persistent_blocks(int64_t groups, int multiprocessors, int blocks_per_multiprocessor);

// Rotary kernels: each thread holds one chunk pair of a head.
inline constexpr int kRopeThreads = 320;  // of a block, at most
struct RopeGeometry {
  int elements;        // of a chunk: 16 bytes' worth, or fewer when head_dim / 2 is no multiple
  int lanes_per_head;  // power of two, at most 32; lanes past head_dim / 2 idle
  int threads;         // per token
  int tokens_per_block;
  int chunks_per_thread;  // 1, 2 or 4; 0: more
};
// `max_elements`: what alignment and dtype allow (from vector_elements). False when head_dim is not
// supported.
bool rope_geometry(int64_t turned_heads, int64_t head_dim, int max_elements, RopeGeometry* out);

// Counting sort: slots per tile and number of tiles, at most `most_tiles`.
struct SortTiles {
  int64_t slots_per_tile;  // a multiple of kSortThreads
  int64_t count;
};
inline constexpr int kSortThreads = 256;
SortTiles sort_tiles(int64_t num_slots, int64_t most_tiles);

// Blocks per segment of the routing statistics, so that all segments together fill the device.
int64_t stats_slices(int64_t num_tokens, int64_t num_segments, int multiprocessors);

// Division of n in [0, 2^31) by a constant d in [1, 2^31) with a multiplication: n / d == (n * multiplier) >>
// 32 >> shift (Granlund & Montgomery 1994).
struct FastDivisor {
  uint32_t divisor, multiplier, shift;
};
FastDivisor fast_divisor(int64_t divisor);

}  // namespace moebius::kernels::cuda
