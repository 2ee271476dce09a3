// Plain routing on the host, for the references of routing and of the routed experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moebius::ops::cases {

struct PlainOrder {
  at::Tensor order_R, inverse_R, offsets_E1;  // int32, as in Routing (ops/route.h)
};

// Slots sorted by expert, stable; slots past the first `capacity` of an expert (-1: none) are dropped.
PlainOrder plain_order(const at::Tensor& experts_TK, int64_t num_experts, int64_t capacity);

}  // namespace moebius::ops::cases
