// Rows cut into blocks for sums over rows. The cut depends on the number of rows only, never on threads or
// timing, so that partial sums added in the order of the blocks give the same bits every time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/parallel.h"

namespace moebius::kernels::cpu {

struct Blocks {
  int64_t rows;  // total
  int64_t size;  // rows of each block but the last
  int64_t count;
  int64_t begin(int64_t block) const { return block * size; }
  int64_t end(int64_t block) const { return std::min(rows, (block + 1) * size); }
};

inline Blocks cut_rows(int64_t rows, int64_t least = 64, int64_t most_blocks = 32) {
  const int64_t size = std::max(least, (rows + most_blocks - 1) / most_blocks);
  return {rows, size, (rows + size - 1) / size};
}

// Runs body(first_block, last_block); whole blocks per thread.
inline void parallel_blocks(const Blocks& blocks, RangeBody body) {
  parallel_for(0, blocks.count, 1, body);
}

// Rows that make one thread's share worth its start, for rows of `width` elements.
inline int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1));
}

// out[i] = sum over blocks of partial[block * width + i], in the order of the blocks.
inline void add_partials(const std::vector<float>& partial, int64_t count, int64_t width, float* out) {
  std::fill(out, out + width, 0.0f);
  for (int64_t b = 0; b < count; ++b) {
    const float* p = partial.data() + b * width;
    for (int64_t i = 0; i < width; ++i) out[i] += p[i];
  }
}

}  // namespace moebius::kernels::cpu
