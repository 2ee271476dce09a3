#include "ops/cases/plain_routing.h"

#include <ATen/ATen.h>

#include <vector>

namespace moebius::ops::cases {

PlainOrder plain_order(const at::Tensor& experts_TK, int64_t num_experts, int64_t capacity) {
  const int64_t num_slots = experts_TK.numel();
  const at::Tensor flat = experts_TK.to(at::kInt).contiguous().view(-1);
  const auto* experts = flat.const_data_ptr<int32_t>();
  std::vector<std::vector<int32_t>> slots(static_cast<size_t>(num_experts));
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    auto& of_expert = slots[static_cast<size_t>(experts[slot])];
    if (capacity < 0 || static_cast<int64_t>(of_expert.size()) < capacity)
      of_expert.push_back(static_cast<int32_t>(slot));
  }
  std::vector<int32_t> order, inverse(static_cast<size_t>(num_slots), -1), offsets{0};
  for (const auto& of_expert : slots) {
    for (const int32_t slot : of_expert) {
      inverse[static_cast<size_t>(slot)] = static_cast<int32_t>(order.size());
      order.push_back(slot);
    }
    offsets.push_back(static_cast<int32_t>(order.size()));
  }
  order.resize(static_cast<size_t>(num_slots), -1);
  return {at::tensor(order, at::kInt), at::tensor(inverse, at::kInt), at::tensor(offsets, at::kInt)};
}

}  // namespace moebius::ops::cases
