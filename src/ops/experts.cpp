// Shapes: T tokens, R rows (T*K), D model width, F expert width, E experts, K experts per token.
#include "ops/experts.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/expert_rows.h"
#include "ops/grouped_mm.h"
#include "ops/weight_gradients.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Options {
  bool keep_gate_up;  // for the backward pass
  bool need_backward;
};

class ExpertFfn : public torch::autograd::Function<ExpertFfn> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                          const at::Tensor& down_EDF, const at::Tensor& weights_TK, const at::Tensor& order_R,
                          const at::Tensor& inverse_R, const at::Tensor& offsets_E1, Options options) {
    Routing routing = kept_routing(weights_TK, {}, order_R, inverse_R, offsets_E1);
    auto [gate_up_R2F, act_RF] =
        grouped_mm_swiglu(routed_rows_for(x_TD, routing, gate_up_E2FD.size(1), false), gate_up_E2FD, routing,
                          options.keep_gate_up);
    at::Tensor y_RD = grouped_mm({act_RF, {}, 1}, down_EDF, offsets_E1);
    act_RF.reset();
    if (options.need_backward) {
      ctx->save_for_backward(
          {x_TD, gate_up_E2FD, down_EDF, weights_TK, order_R, inverse_R, offsets_E1, gate_up_R2F});
      ctx->saved_data["gate_up_is_kept"] = options.keep_gate_up;
      WeightGradients* const later = WeightGradients::current_for(gate_up_E2FD);
      if (later != nullptr && WeightGradients::current_for(down_EDF) != nullptr)
        ctx->saved_data["later"] = reinterpret_cast<int64_t>(later);
    }
    return combine_rows(y_RD, weights_TK, routing);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x_TD = saved[0], &gate_up_E2FD = saved[1], &down_EDF = saved[2], &weights_TK = saved[3];
    const at::Tensor& offsets_E1 = saved[6];
    const Routing routing = kept_routing(weights_TK, {}, saved[4], saved[5], offsets_E1);
    const at::Tensor grad_y_TD = grads[0].contiguous();

    // The kept pre-activation gives its memory to its own gradient. Should the graph be walked a second time
    // (retain_graph), it is computed again, as with recompute.
    at::Tensor gate_up_R2F;
    if (ctx->saved_data["gate_up_is_kept"].toBool()) {
      gate_up_R2F = saved[7];
      ctx->saved_data["gate_up_is_kept"] = false;
    } else {
      gate_up_R2F = grouped_mm(routed_rows(x_TD, routing), gate_up_E2FD, offsets_E1);
    }

    RowOperand grad_y_rows = routed_rows_for(grad_y_TD, routing, down_EDF.size(2), true);
    at::Tensor grad_act_RF = grouped_mm_input_grad(grad_y_rows, down_EDF, offsets_E1);
    RoutedActivationGrads act =
        activate_routed_backward(std::move(gate_up_R2F), std::move(grad_act_RF), weights_TK, routing);
    at::Tensor grad_down_EDF, grad_gate_up_E2FD, grad_x_TD, grad_weights_TK;
    if (const auto later = ctx->saved_data.find("later"); later != ctx->saved_data.end()) {
      // What the products of the weights' gradients read stays until then.
      auto* const weights = reinterpret_cast<WeightGradients*>(later->second.toInt());
      const RowOperand rows{act.gate_up_R2F, {}, 1};
      weights->add(down_EDF, [grad_y_rows, act_scaled_RF = act.act_scaled_RF, offsets_E1] {
        return grouped_mm_weight_grad(grad_y_rows, {act_scaled_RF, {}, 1}, offsets_E1);
      });
      weights->add(gate_up_E2FD, [rows, x_TD, routing, width = gate_up_E2FD.size(1)] {
        return grouped_mm_weight_grad(rows, routed_rows_for(x_TD, routing, width, true), routing.offsets_E1);
      });
      if (ctx->needs_input_grad(3)) grad_weights_TK = act.weights_TK;
      if (ctx->needs_input_grad(0))
        grad_x_TD = combine_rows(grouped_mm_input_grad(rows, gate_up_E2FD, offsets_E1), {}, routing);
      return {grad_x_TD, {}, {}, grad_weights_TK, {}, {}, {}, {}};
    }
    if (ctx->needs_input_grad(3)) grad_weights_TK = act.weights_TK;
    if (ctx->needs_input_grad(2))
      grad_down_EDF = grouped_mm_weight_grad(grad_y_rows, {act.act_scaled_RF, {}, 1}, offsets_E1);
    grad_y_rows = {};
    act.act_scaled_RF.reset();
    const RowOperand grad_gate_up_rows{std::move(act.gate_up_R2F), {}, 1};
    if (ctx->needs_input_grad(1))
      grad_gate_up_E2FD = grouped_mm_weight_grad(
          grad_gate_up_rows, routed_rows_for(x_TD, routing, gate_up_E2FD.size(1), true), offsets_E1);
    if (ctx->needs_input_grad(0))
      grad_x_TD =
          combine_rows(grouped_mm_input_grad(grad_gate_up_rows, gate_up_E2FD, offsets_E1), {}, routing);
    return {grad_x_TD, grad_gate_up_E2FD, grad_down_EDF, grad_weights_TK, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor expert_ffn(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD, const at::Tensor& down_EDF,
                      const Routing& routing, bool recompute) {
  const int64_t num_tokens = x_TD.size(0), width = x_TD.size(1), num_experts = gate_up_E2FD.size(0);
  MOEBIUS_CHECK_EQ(gate_up_E2FD.size(2), width);
  MOEBIUS_CHECK_EQ(down_EDF.size(0), num_experts);
  MOEBIUS_CHECK_EQ(down_EDF.size(1), width);
  MOEBIUS_CHECK_EQ(gate_up_E2FD.size(1), 2 * down_EDF.size(2));
  MOEBIUS_CHECK_EQ(routing.offsets_E1.size(0), num_experts + 1);
  MOEBIUS_CHECK_EQ(routing.weights_TK.size(0), num_tokens);
  MOEBIUS_CHECK_LE(routing.order_R.size(0), routing.weights_TK.numel());
  MOEBIUS_CHECK_EQ(routing.inverse_R.size(0), routing.weights_TK.numel());
  MOEBIUS_CHECK(routing.weights_TK.scalar_type() == at::kFloat);
  MOEBIUS_CHECK(x_TD.scalar_type() == gate_up_E2FD.scalar_type() &&
                x_TD.scalar_type() == down_EDF.scalar_type());
  const bool need_backward =
      at::GradMode::is_enabled() && (x_TD.requires_grad() || gate_up_E2FD.requires_grad() ||
                                     down_EDF.requires_grad() || routing.weights_TK.requires_grad());
  return ExpertFfn::apply(x_TD.contiguous(), gate_up_E2FD.contiguous(), down_EDF.contiguous(),
                          routing.weights_TK.contiguous(), routing.order_R, routing.inverse_R,
                          routing.offsets_E1, Options{need_backward && !recompute, need_backward});
}

}  // namespace moebius::ops
