// Steps between the products of the routed experts, on rows sorted by expert; no autograd. Shapes: T tokens,
// R rows (T*K), D model width, F expert width, K experts per token.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/route.h"

namespace moebius::ops {

// Row index[r] / divisor of a tensor for each r, as a copy; zeros where index[r] < 0.
at::Tensor gather_rows(const at::Tensor& from, const at::Tensor& index_R, int64_t divisor);

// silu(gate) * up of the rows in use; the others become zero.
at::Tensor activate_rows(const at::Tensor& gate_up_R2F, const Routing& routing);

// What the activation's backward leaves behind. Both matrices take the memory of the arguments they replace.
struct RowActivationGrads {
  at::Tensor gate_up_R2F;    // was: gate_up
  at::Tensor act_scaled_RF;  // was: the gradient after the down projection's input
  at::Tensor row_scale_R;    // gradient of the router weight of each row
};
RowActivationGrads activate_rows_backward(at::Tensor gate_up_R2F, at::Tensor grad_RF,
                                          const at::Tensor& row_scale_R, const Routing& routing);

// y_TD = sum over k of weight[t, k] * row of slot (t, k); weights_TK undefined: 1.
at::Tensor combine_rows(const at::Tensor& rows_RD, const at::Tensor& weights_TK, const Routing& routing);

// The same with router weights per slot (t, k), weights_TK, and their gradient likewise (0 for dropped
// slots).
struct RoutedActivationGrads {
  at::Tensor gate_up_R2F;    // was: gate_up
  at::Tensor act_scaled_RF;  // was: the gradient after the down projection's input
  at::Tensor weights_TK;     // gradient of the router weights
};
RoutedActivationGrads activate_routed_backward(at::Tensor gate_up_R2F, at::Tensor grad_RF,
                                               const at::Tensor& weights_TK, const Routing& routing);

// A value per row as a value per slot (t, k); 0 for dropped slots.
at::Tensor rows_to_slots(const at::Tensor& values_R, const Routing& routing);

// A value per slot as a value per row; rows of the unused tail get some slot's value.
at::Tensor slots_to_rows(const at::Tensor& values_TK, const Routing& routing);

}  // namespace moebius::ops
