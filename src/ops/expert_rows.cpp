#include "ops/expert_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "ops/device.h"

namespace moebius::ops {
namespace {

// Number of rows in use: the last offset, where it lies (device memory on a device).
const int32_t* valid_rows(const Routing& routing) {
  return routing.offsets_E1.const_data_ptr<int32_t>() + routing.offsets_E1.size(0) - 1;
}

// Both matrices are replaced by what comes of them.
void run_activation_backward(const at::Tensor& gate_up_R2F, const at::Tensor& grad_RF,
                             const at::Tensor& scale, const at::Tensor& grad_scale, const int32_t* slots,
                             const Routing& routing) {
  kernels::SwigluBackwardArgs args{};
  args.gate_up = gate_up_R2F.const_data_ptr();
  args.grad_out = grad_RF.const_data_ptr();
  args.row_scale = scale.const_data_ptr<float>();
  args.grad_gate_up = gate_up_R2F.mutable_data_ptr();
  args.act_scaled = grad_RF.mutable_data_ptr();
  args.grad_row_scale = grad_scale.mutable_data_ptr<float>();
  args.valid_rows = valid_rows(routing);
  args.num_rows = gate_up_R2F.size(0);
  args.width = grad_RF.size(1);
  args.dtype = kernel_dtype(gate_up_R2F);
  args.slots = slots;
  kernel_table(gate_up_R2F.device()).swiglu_backward(args, current_stream(gate_up_R2F.device()));
}

}  // namespace

at::Tensor gather_rows(const at::Tensor& from, const at::Tensor& index_R, int64_t divisor) {
  at::Tensor rows = at::empty({index_R.size(0), from.size(1)}, from.options());
  kernels::GatherRowsArgs args{};
  args.src = from.const_data_ptr();
  args.order = index_R.const_data_ptr<int32_t>();
  args.rows = rows.mutable_data_ptr();
  args.num_rows = rows.size(0);
  args.width = rows.size(1);
  args.top_k = divisor;
  args.dtype = kernel_dtype(from);
  kernel_table(from.device()).gather_rows(args, current_stream(from.device()));
  return rows;
}

at::Tensor activate_rows(const at::Tensor& gate_up_R2F, const Routing& routing) {
  const int64_t num_rows = gate_up_R2F.size(0), width = gate_up_R2F.size(1) / 2;
  at::Tensor act_RF = at::empty({num_rows, width}, gate_up_R2F.options());
  kernels::SwigluForwardArgs args{};
  args.gate_up = gate_up_R2F.const_data_ptr();
  args.out = act_RF.mutable_data_ptr();
  args.valid_rows = valid_rows(routing);
  args.num_rows = num_rows;
  args.width = width;
  args.dtype = kernel_dtype(gate_up_R2F);
  kernel_table(gate_up_R2F.device()).swiglu_forward(args, current_stream(gate_up_R2F.device()));
  return act_RF;
}

at::Tensor combine_rows(const at::Tensor& rows_RD, const at::Tensor& weights_TK, const Routing& routing) {
  const int64_t num_tokens = routing.weights_TK.size(0), top_k = routing.weights_TK.size(1);
  at::Tensor y_TD = at::empty({num_tokens, rows_RD.size(1)}, rows_RD.options());
  kernels::CombineRowsArgs args{};
  args.rows = rows_RD.const_data_ptr();
  args.inverse = routing.inverse_R.const_data_ptr<int32_t>();
  args.weights = weights_TK.defined() ? weights_TK.const_data_ptr<float>() : nullptr;
  args.out = y_TD.mutable_data_ptr();
  args.num_tokens = num_tokens;
  args.width = rows_RD.size(1);
  args.top_k = top_k;
  args.dtype = kernel_dtype(rows_RD);
  kernel_table(rows_RD.device()).combine_rows(args, current_stream(rows_RD.device()));
  return y_TD;
}

RowActivationGrads activate_rows_backward(at::Tensor gate_up_R2F, at::Tensor grad_RF,
                                          const at::Tensor& row_scale_R, const Routing& routing) {
  at::Tensor grad_row_scale_R = at::empty({gate_up_R2F.size(0)}, gate_up_R2F.options().dtype(at::kFloat));
  run_activation_backward(gate_up_R2F, grad_RF, row_scale_R, grad_row_scale_R, nullptr, routing);
  return {std::move(gate_up_R2F), std::move(grad_RF), std::move(grad_row_scale_R)};
}

RoutedActivationGrads activate_routed_backward(at::Tensor gate_up_R2F, at::Tensor grad_RF,
                                               const at::Tensor& weights_TK, const Routing& routing) {
  at::Tensor grad_weights_TK = at::zeros_like(weights_TK);
  run_activation_backward(gate_up_R2F, grad_RF, weights_TK, grad_weights_TK,
                          routing.order_R.const_data_ptr<int32_t>(), routing);
  return {std::move(gate_up_R2F), std::move(grad_RF), std::move(grad_weights_TK)};
}

at::Tensor rows_to_slots(const at::Tensor& values_R, const Routing& routing) {
  const at::Tensor& inverse_R = routing.inverse_R;
  return values_R.index_select(0, inverse_R.clamp_min(0))
      .masked_fill_(inverse_R.lt(0), 0)
      .view_as(routing.weights_TK);
}

at::Tensor slots_to_rows(const at::Tensor& values_TK, const Routing& routing) {
  return values_TK.reshape({-1}).index_select(0, routing.order_R.clamp_min(0));
}

}  // namespace moebius::ops
