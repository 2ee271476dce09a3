// Shapes: T tokens, R rows (T*K), D model width, F expert width, E experts, K experts per token.
#include "ops/biased_experts.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/expert_rows.h"
#include "ops/grouped_mm.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Activation {
  bool clamped;
  double alpha, limit;
};

// Gate and up of each row in fp32, and the parts of the clamped activation.
struct Clamped {
  at::Tensor gate, up;          // as they came
  at::Tensor gate_cut, up_cut;  // within the limits
  at::Tensor sigmoid;           // of alpha * gate_cut

  Clamped(const at::Tensor& gate_up_R2F, const Activation& form) {
    const at::Tensor pairs = gate_up_R2F.to(at::kFloat).unflatten(1, {-1, 2});
    gate = pairs.select(2, 0);
    up = pairs.select(2, 1);
    gate_cut = gate.clamp_max(form.limit);
    up_cut = up.clamp(-form.limit, form.limit);
    sigmoid = at::sigmoid(gate_cut * form.alpha);
  }
  at::Tensor value() const { return (up_cut + 1) * gate_cut * sigmoid; }
};

at::Tensor activation(const at::Tensor& gate_up_R2F, const Activation& form, const Routing& routing) {
  if (!form.clamped) return activate_rows(gate_up_R2F, routing);
  return Clamped(gate_up_R2F, form).value().to(gate_up_R2F.scalar_type());
}

RowActivationGrads activation_backward(const at::Tensor& gate_up_R2F, const at::Tensor& grad_RF,
                                       const at::Tensor& row_scale_R, const Activation& form,
                                       const Routing& routing) {
  // That of the kernel writes over its arguments.
  if (!form.clamped) return activate_rows_backward(gate_up_R2F.clone(), grad_RF, row_scale_R, routing);
  const Clamped parts(gate_up_R2F, form);
  const at::Tensor act = parts.value(), grad = grad_RF.to(at::kFloat), scale = row_scale_R.unsqueeze(1);
  const at::Tensor grad_act = grad * scale;
  const at::Tensor slope = parts.sigmoid * (1 + parts.gate_cut * form.alpha * (1 - parts.sigmoid));
  const at::Tensor grad_gate = grad_act * (parts.up_cut + 1) * slope * parts.gate.le(form.limit);
  const at::Tensor grad_up = grad_act * parts.gate_cut * parts.sigmoid * parts.up.abs().le(form.limit);
  const at::ScalarType dtype = gate_up_R2F.scalar_type();
  return {at::stack({grad_gate, grad_up}, 2).flatten(1).to(dtype), (act * scale).to(dtype),
          (grad * act).sum(1)};
}

// The expert of each row; some expert's number in the unused tail.
at::Tensor experts_of_rows(const at::Tensor& experts_TK, const at::Tensor& order_R) {
  return experts_TK.reshape({-1}).index_select(0, order_R.clamp_min(0));
}

// (E, R): 1 where a row in use belongs to an expert. As a factor it sums rows by expert in a fixed order.
at::Tensor rows_by_expert(const at::Tensor& expert_R, const at::Tensor& order_R, int64_t num_experts) {
  const at::Tensor experts_E1 = at::arange(num_experts, expert_R.options()).unsqueeze(1);
  return experts_E1.eq(expert_R).logical_and(order_R.ge(0));
}

struct BiasedOptions {
  Activation form;
  bool keep_gate_up;  // for the backward pass
  bool need_backward;
};

class BiasedExpertFfn : public torch::autograd::Function<BiasedExpertFfn> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                          const at::Tensor& down_EDF, const std::optional<at::Tensor>& gate_up_bias_E2F,
                          const std::optional<at::Tensor>& down_bias_ED, const at::Tensor& weights_TK,
                          const at::Tensor& experts_TK, const at::Tensor& order_R,
                          const at::Tensor& inverse_R, const at::Tensor& offsets_E1, BiasedOptions options) {
    const Routing routing = kept_routing(weights_TK, experts_TK, order_R, inverse_R, offsets_E1);
    const at::Tensor expert_R = experts_of_rows(experts_TK, order_R);
    const at::Tensor gate_up_R2F =
        pre_activation(x_TD, gate_up_E2FD, gate_up_bias_E2F.value_or(at::Tensor()), expert_R, routing);
    at::Tensor y_RD =
        grouped_mm({activation(gate_up_R2F, options.form, routing), {}, 1}, down_EDF, offsets_E1);
    if (down_bias_ED) y_RD.add_(down_bias_ED->index_select(0, expert_R));
    if (options.need_backward) {
      ctx->save_for_backward({x_TD, gate_up_E2FD, down_EDF, gate_up_bias_E2F.value_or(at::Tensor()),
                              down_bias_ED.value_or(at::Tensor()), weights_TK, experts_TK, order_R, inverse_R,
                              offsets_E1, options.keep_gate_up ? gate_up_R2F : at::Tensor()});
      ctx->saved_data["clamped"] = options.form.clamped;
      ctx->saved_data["alpha"] = options.form.alpha;
      ctx->saved_data["limit"] = options.form.limit;
    }
    return combine_rows(y_RD, weights_TK, routing);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x_TD = saved[0], &gate_up_E2FD = saved[1], &down_EDF = saved[2],
                     &gate_up_bias_E2F = saved[3], &down_bias_ED = saved[4], &weights_TK = saved[5],
                     &experts_TK = saved[6], &order_R = saved[7], &offsets_E1 = saved[9];
    const Routing routing = kept_routing(weights_TK, experts_TK, order_R, saved[8], offsets_E1);
    const Activation form{ctx->saved_data["clamped"].toBool(), ctx->saved_data["alpha"].toDouble(),
                          ctx->saved_data["limit"].toDouble()};
    const at::Tensor grad_y_TD = grads[0].contiguous();
    const at::Tensor expert_R = experts_of_rows(experts_TK, order_R);
    const at::Tensor gate_up_R2F =
        saved[10].defined() ? saved[10]
                            : pre_activation(x_TD, gate_up_E2FD, gate_up_bias_E2F, expert_R, routing);

    const RowOperand grad_y_rows = routed_rows_for(grad_y_TD, routing, down_EDF.size(2), true);
    const RowActivationGrads act =
        activation_backward(gate_up_R2F, grouped_mm_input_grad(grad_y_rows, down_EDF, offsets_E1),
                            slots_to_rows(weights_TK, routing), form, routing);
    const RowOperand grad_gate_up_rows{act.gate_up_R2F, {}, 1};
    variable_list result(11);
    result[0] = combine_rows(grouped_mm_input_grad(grad_gate_up_rows, gate_up_E2FD, offsets_E1), {}, routing);
    result[1] = grouped_mm_weight_grad(
        grad_gate_up_rows, routed_rows_for(x_TD, routing, gate_up_E2FD.size(1), true), offsets_E1);
    result[2] = grouped_mm_weight_grad(grad_y_rows, {act.act_scaled_RF, {}, 1}, offsets_E1);
    if (gate_up_bias_E2F.defined()) {
      const at::Tensor in_use_R1 = order_R.ge(0).unsqueeze(1);
      const at::Tensor rows = at::where(in_use_R1, act.gate_up_R2F, at::zeros({}, act.gate_up_R2F.options()));
      const at::Tensor by_expert = rows_by_expert(expert_R, order_R, gate_up_bias_E2F.size(0));
      result[3] = at::mm(by_expert.to(rows.scalar_type()), rows);
    }
    result[5] = rows_to_slots(act.row_scale_R, routing);
    if (down_bias_ED.defined()) {
      const at::Tensor kept_TK = routing.inverse_R.ge(0).view_as(weights_TK).to(at::kFloat);
      const at::Tensor experts = experts_TK.to(at::kLong), grad_y = grad_y_TD.to(at::kFloat);
      const at::Tensor weights_TE =
          at::zeros({weights_TK.size(0), down_bias_ED.size(0)}, weights_TK.options())
              .scatter_add_(1, experts, weights_TK * kept_TK);
      result[4] = at::mm(weights_TE.t(), grad_y).to(down_bias_ED.scalar_type());
      const at::Tensor led_to_TE = at::mm(grad_y, down_bias_ED.to(at::kFloat).t());
      result[5] = result[5] + led_to_TE.gather(1, experts) * kept_TK;
    }
    return result;
  }

 private:
  static at::Tensor pre_activation(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                                   const at::Tensor& bias_E2F, const at::Tensor& expert_R,
                                   const Routing& routing) {
    at::Tensor gate_up_R2F = grouped_mm(routed_rows(x_TD, routing), gate_up_E2FD, routing.offsets_E1);
    if (bias_E2F.defined()) gate_up_R2F.add_(bias_E2F.index_select(0, expert_R));
    return gate_up_R2F;
  }
};

std::optional<at::Tensor> bias_or_none(const at::Tensor& bias, int64_t experts, int64_t width,
                                       at::ScalarType dtype) {
  if (!bias.defined()) return std::nullopt;
  MOEBIUS_CHECK(
      bias.dim() == 2 && bias.size(0) == experts && bias.size(1) == width && bias.scalar_type() == dtype,
      "bias is ", bias.sizes(), " ", bias.scalar_type(), " for ", experts, " experts of ", width);
  return bias.contiguous();
}

}  // namespace

at::Tensor biased_expert_ffn(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                             const at::Tensor& down_EDF, const Routing& routing, const ExpertForm& form,
                             bool recompute) {
  const int64_t width = x_TD.size(1), experts = gate_up_E2FD.size(0), hidden = down_EDF.size(2);
  MOEBIUS_CHECK(gate_up_E2FD.size(2) == width && gate_up_E2FD.size(1) == 2 * hidden &&
                    down_EDF.size(0) == experts && down_EDF.size(1) == width,
                "experts are ", gate_up_E2FD.sizes(), " and ", down_EDF.sizes(), " for rows of ", width);
  MOEBIUS_CHECK(routing.experts_TK.sizes() == routing.weights_TK.sizes() &&
                    routing.order_R.size(0) <= routing.weights_TK.numel() &&
                    routing.offsets_E1.size(0) == experts + 1,
                "routing of ", routing.weights_TK.sizes());
  const auto gate_up_bias = bias_or_none(form.gate_up_bias_E2F, experts, 2 * hidden, x_TD.scalar_type());
  const auto down_bias = bias_or_none(form.down_bias_ED, experts, width, x_TD.scalar_type());
  const auto needs = [](const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); };
  const bool need_backward =
      at::GradMode::is_enabled() &&
      (needs(x_TD) || needs(gate_up_E2FD) || needs(down_EDF) || needs(routing.weights_TK) ||
       needs(form.gate_up_bias_E2F) || needs(form.down_bias_ED));
  return BiasedExpertFfn::apply(
      x_TD.contiguous(), gate_up_E2FD.contiguous(), down_EDF.contiguous(), gate_up_bias, down_bias,
      routing.weights_TK.contiguous(), routing.experts_TK, routing.order_R, routing.inverse_R,
      routing.offsets_E1,
      BiasedOptions{{form.clamped, form.alpha, form.limit}, need_backward && !recompute, need_backward});
}

}  // namespace moebius::ops
