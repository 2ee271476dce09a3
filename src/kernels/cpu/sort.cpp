#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"

namespace moebius::kernels::cpu {

// Counting sort in three passes over blocks of slots: count, turn counts into first places, place.
void sort_by_expert(const SortByExpertArgs& args, Stream) {
  const int64_t num = args.num_experts;
  const Blocks blocks = cut_rows(args.num_slots, 8192, 64);
  std::vector<int64_t> places(static_cast<size_t>(blocks.count * num));  // (block, expert)
  parallel_blocks(blocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t* count = places.data() + b * num;
      for (int64_t slot = blocks.begin(b); slot < blocks.end(b); ++slot) {
        const int32_t expert = args.experts[slot];
        MOEBIUS_CHECK(expert >= 0 && expert < num, "slot ", slot, " names expert ", expert, " of ", num);
        ++count[expert];
      }
    }
  });

  const int64_t capacity = args.capacity < 0 ? args.num_slots : args.capacity;
  // places becomes the position of the block's first slot among all slots of its expert.
  int64_t row = 0;
  args.offsets[0] = 0;
  for (int64_t e = 0; e < num; ++e) {
    int64_t total = 0;
    for (int64_t b = 0; b < blocks.count; ++b) {
      int64_t& place = places[static_cast<size_t>(b * num + e)];
      total += std::exchange(place, total);
    }
    row += std::min(total, capacity);
    args.offsets[e + 1] = static_cast<int32_t>(row);
  }

  parallel_blocks(blocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t* place = places.data() + b * num;
      for (int64_t slot = blocks.begin(b); slot < blocks.end(b); ++slot) {
        const int32_t expert = args.experts[slot];
        const int64_t position = place[expert]++;
        const int64_t at = args.offsets[expert] + position;
        const bool kept = position < capacity;
        args.inverse[slot] = kept ? static_cast<int32_t>(at) : -1;
        if (kept) args.order[at] = static_cast<int32_t>(slot);
      }
    }
  });
  std::fill(args.order + row, args.order + args.num_slots, -1);
}

}  // namespace moebius::kernels::cpu
