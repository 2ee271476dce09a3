#include "kernels/cuda/geometry.h"

#include <algorithm>

#include "base/check.h"

namespace moebius::kernels::cuda {
namespace {

int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace

int vector_elements(int64_t width, int64_t element_bytes, std::initializer_list<const void*> pointers) {
  const int64_t elements = 16 / element_bytes;
  if (width % elements != 0) return 1;
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return 1;
  }
  return static_cast<int>(elements);
}

RowShape row_shape(int64_t chunks, int most_chunks, int most_threads) {
  constexpr int64_t kWarp = 32, kBlock = 256;
  const int64_t threads =
      std::clamp<int64_t>(power_of_two_from(ceil_div(chunks, most_chunks)), kWarp, most_threads);
  const int64_t per_thread = power_of_two_from(std::max<int64_t>(1, ceil_div(chunks, threads)));
  RowShape shape{};
  shape.threads_per_row = static_cast<int>(threads);
  shape.rows_per_block = static_cast<int>(std::max<int64_t>(1, kBlock / threads));
  shape.chunks_per_thread = per_thread > most_chunks ? 0 : static_cast<int>(per_thread);
  return shape;
}

int persistent_blocks(int64_t groups, int multiprocessors, int blocks_per_multiprocessor) {
  return static_cast<int>(
      std::clamp<int64_t>(groups, 1, static_cast<int64_t>(multiprocessors) * blocks_per_multiprocessor));
}

bool rope_geometry(int64_t turned_heads, int64_t head_dim, int max_elements, RopeGeometry* out) {
  const int64_t half = head_dim / 2;
  if (head_dim < 2 || head_dim % 2 != 0) return false;
  int elements = max_elements;
  while (half % elements != 0) elements /= 2;
  const int64_t lanes = power_of_two_from(half / elements);
  if (lanes > 32) return false;
  constexpr int64_t kBlock = 256;
  const int64_t chunks = turned_heads * lanes;
  const int64_t rounds = ceil_div(chunks, kRopeThreads);
  const int64_t threads = ceil_div(ceil_div(chunks, rounds), 32) * 32;
  const int64_t per_thread = power_of_two_from(ceil_div(chunks, threads));
  out->elements = elements;
  out->lanes_per_head = static_cast<int>(lanes);
  out->threads = static_cast<int>(threads);
  out->tokens_per_block = static_cast<int>(std::max<int64_t>(1, kBlock / threads));
  out->chunks_per_thread = per_thread > 4 ? 0 : static_cast<int>(per_thread);
  return true;
}

SortTiles sort_tiles(int64_t num_slots, int64_t most_tiles) {
  constexpr int64_t kLeastSlots = 1024;
  const int64_t slots =
      std::max(kLeastSlots, ceil_div(ceil_div(num_slots, most_tiles), kSortThreads) * kSortThreads);
  return {slots, ceil_div(num_slots, slots)};
}

int64_t stats_slices(int64_t num_tokens, int64_t num_segments, int multiprocessors) {
  constexpr int64_t kLeastTokens = 64;
  const int64_t by_device = multiprocessors / std::max<int64_t>(1, num_segments);
  const int64_t by_work = num_tokens / std::max<int64_t>(1, num_segments) / kLeastTokens;
  return std::max<int64_t>(1, std::min(by_device, by_work));
}

FastDivisor fast_divisor(int64_t divisor) {
  MOEBIUS_CHECK(divisor >= 1 && divisor < (int64_t{1} << 31), "divisor ", divisor);
  const uint64_t d = static_cast<uint64_t>(divisor);
  if (d == 1) return {1, 0, 0};  // the kernel side returns n itself
  uint32_t log2_up = 0;
  while ((uint64_t{1} << log2_up) < d) ++log2_up;
  // 2^(31 + log2_up) / d rounded up fits in 32 bits and is exact for all n below 2^31.
  const uint64_t power = uint64_t{1} << (31 + log2_up);
  return {static_cast<uint32_t>(d), static_cast<uint32_t>((power + d - 1) / d), log2_up - 1};
}

}  // namespace moebius::kernels::cuda
