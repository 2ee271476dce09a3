#include "quant/routed_steps.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/expert_rows.h"
#include "ops/grouped_mm.h"

namespace moebius::quant {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// (R, 1): rows in the tail, which no slot belongs to.
at::Tensor unused(const at::Tensor& order_R) {
  return order_R.lt(0).unsqueeze(1);
}

ops::Routing as_routing(const at::Tensor& weights_TK, const at::Tensor& order_R, const at::Tensor& inverse_R,
                        const at::Tensor& offsets_E1) {
  ops::Routing routing;
  routing.weights_TK = weights_TK;
  routing.order_R = order_R;
  routing.inverse_R = inverse_R;
  routing.offsets_E1 = offsets_E1;
  return routing;
}

// The product of rows, gathered from tokens or not.
class RoutedProduct : public torch::autograd::Function<RoutedProduct> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight_ENK,
                          const at::Tensor& weights_TK, const at::Tensor& order_R,
                          const at::Tensor& inverse_R, const at::Tensor& offsets_E1, bool gathers) {
    ctx->save_for_backward({x, weight_ENK, weights_TK, order_R, inverse_R, offsets_E1});
    ctx->saved_data["gathers"] = gathers;
    const ops::Routing routing = as_routing(weights_TK, order_R, inverse_R, offsets_E1);
    return ops::grouped_mm(rows(x, routing, gathers, weight_ENK.size(1), false), weight_ENK, offsets_E1)
        .masked_fill_(unused(order_R), 0);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight_ENK = saved[1], &order_R = saved[3], &offsets_E1 = saved[5];
    const ops::Routing routing = as_routing(saved[2], order_R, saved[4], offsets_E1);
    const bool gathers = ctx->saved_data["gathers"].toBool();
    const ops::RowOperand grad_rows{grads[0].contiguous(), {}, 1};
    at::Tensor grad_x, grad_weight;
    if (ctx->needs_input_grad(0)) {
      grad_x = ops::grouped_mm_input_grad(grad_rows, weight_ENK, offsets_E1);
      grad_x = gathers ? ops::combine_rows(grad_x, {}, routing) : grad_x.masked_fill_(unused(order_R), 0);
    }
    if (ctx->needs_input_grad(1))
      grad_weight = ops::grouped_mm_weight_grad(
          grad_rows, rows(x, routing, gathers, weight_ENK.size(1), true), offsets_E1);
    return {grad_x, grad_weight, {}, {}, {}, {}, {}};
  }

 private:
  static ops::RowOperand rows(const at::Tensor& x, const ops::Routing& routing, bool gathers, int64_t width,
                              bool summed) {
    return gathers ? ops::routed_rows_for(x, routing, width, summed) : ops::RowOperand{x, {}, 1};
  }
};

class Activate : public torch::autograd::Function<Activate> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& gate_up_R2F, const at::Tensor& offsets_E1) {
    ctx->save_for_backward({gate_up_R2F, offsets_E1});
    return ops::activate_rows(gate_up_R2F, as_routing({}, {}, {}, offsets_E1));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& gate_up_R2F = saved[0];
    // The kernel writes over its arguments.
    const at::Tensor ones_R = at::ones({gate_up_R2F.size(0)}, gate_up_R2F.options().dtype(at::kFloat));
    return {ops::activate_rows_backward(gate_up_R2F.clone(), grads[0].clone(at::MemoryFormat::Contiguous),
                                        ones_R, as_routing({}, {}, {}, saved[1]))
                .gate_up_R2F,
            {}};
  }
};

class Combine : public torch::autograd::Function<Combine> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& y_RD, const at::Tensor& weights_TK,
                          const at::Tensor& order_R, const at::Tensor& inverse_R) {
    ctx->save_for_backward({y_RD, weights_TK, order_R, inverse_R});
    return ops::combine_rows(y_RD, weights_TK, as_routing(weights_TK, order_R, inverse_R, {}));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &y_RD = saved[0], &weights_TK = saved[1], &order_R = saved[2];
    const ops::Routing routing = as_routing(weights_TK, order_R, saved[3], {});
    const at::Tensor token_R = order_R.clamp_min(0).div(weights_TK.size(1), "floor");
    const at::Tensor grad_RD =
        grads[0].index_select(0, token_R).to(at::kFloat).masked_fill_(unused(order_R), 0);
    at::Tensor grad_y, grad_weights;
    if (ctx->needs_input_grad(0))
      grad_y = (grad_RD * ops::slots_to_rows(weights_TK, routing).unsqueeze(1)).to(y_RD.scalar_type());
    if (ctx->needs_input_grad(1))
      grad_weights = ops::rows_to_slots((grad_RD * y_RD.to(at::kFloat)).sum(1), routing);
    return {grad_y, grad_weights, {}, {}};
  }
};

at::Tensor routed_product(const at::Tensor& x, const at::Tensor& weight, const ops::Routing& routing,
                          bool gathers) {
  MOEBIUS_CHECK_EQ(x.size(1), weight.size(2));
  return RoutedProduct::apply(x.contiguous(), weight.contiguous(), routing.weights_TK.detach().contiguous(),
                              routing.order_R, routing.inverse_R, routing.offsets_E1, gathers);
}

// (R, width): each row's part of a bias, by a product with the choice, whose gradient sums in a fixed order.
at::Tensor bias_of_rows(const at::Tensor& bias_EW, const ops::Routing& routing) {
  const at::Tensor expert_R =
      routing.experts_TK.reshape({-1}).index_select(0, routing.order_R.clamp_min(0)).unsqueeze(1);
  const at::Tensor choice_RE = at::arange(bias_EW.size(0), expert_R.options())
                                   .eq(expert_R)
                                   .logical_and_(unused(routing.order_R).logical_not());
  return at::mm(choice_RE.to(bias_EW.scalar_type()), bias_EW);
}

}  // namespace

at::Tensor product_of_tokens(const at::Tensor& x_TD, const at::Tensor& weight_END,
                             const ops::Routing& routing) {
  return routed_product(x_TD, weight_END, routing, true);
}

at::Tensor product_of_rows(const at::Tensor& x_RF, const at::Tensor& weight_ENF,
                           const ops::Routing& routing) {
  return routed_product(x_RF, weight_ENF, routing, false);
}

at::Tensor activated(const at::Tensor& gate_up_R2F, const ops::ExpertForm& form,
                     const ops::Routing& routing) {
  at::Tensor sum = gate_up_R2F;
  if (form.gate_up_bias_E2F.defined()) sum = sum + bias_of_rows(form.gate_up_bias_E2F, routing);
  if (!form.clamped) return Activate::apply(sum.contiguous(), routing.offsets_E1);
  const at::Tensor pairs = sum.to(at::kFloat).unflatten(1, {-1, 2});
  const at::Tensor gate = pairs.select(2, 0).clamp_max(form.limit);
  const at::Tensor up = pairs.select(2, 1).clamp(-form.limit, form.limit);
  const at::Tensor act = (up + 1) * gate * at::sigmoid(gate * form.alpha);
  return act.masked_fill(unused(routing.order_R), 0).to(gate_up_R2F.scalar_type());
}

at::Tensor combined(const at::Tensor& y_RD, const ops::ExpertForm& form, const ops::Routing& routing) {
  at::Tensor sum = y_RD;
  if (form.down_bias_ED.defined()) sum = sum + bias_of_rows(form.down_bias_ED, routing);
  return Combine::apply(sum.contiguous(), routing.weights_TK.contiguous(), routing.order_R,
                        routing.inverse_R);
}

}  // namespace moebius::quant
