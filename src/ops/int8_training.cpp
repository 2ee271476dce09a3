#include "ops/int8_training.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/device.h"
#include "ops/expert_rows.h"
#include "ops/grouped_mm.h"
#include "ops/int8_rows.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

constexpr Int8Activations kOneDigit = Int8Activations::one_digit;

struct Int8FfnOptions {
  bool keep_gate_up;  // for the backward pass
  bool need_backward;
};

struct ActivatedRows {
  at::Tensor gate_up_R2F;  // undefined unless kept
  at::Tensor act_RF;
};

// The first product and its activation.
ActivatedRows activated_rows(const at::Tensor& x_TD, const Int8Weight& gate_up, const Routing& routing,
                             bool keep) {
  const CodedRows x = routed_codes(x_TD, routing.order_R, routing.weights_TK.size(1), kOneDigit);
  const int64_t num_rows = routing.order_R.size(0);
  ActivatedRows rows;
  if (gate_up.gate_up) {  // the product applies it
    if (keep) rows.gate_up_R2F = at::empty({num_rows, gate_up.n}, x_TD.options());
    rows.act_RF =
        int8_grouped(x, gate_up, {}, routing.offsets_E1, num_rows, x_TD.scalar_type(), rows.gate_up_R2F);
    return rows;
  }
  rows.gate_up_R2F = int8_grouped(x, gate_up, {}, routing.offsets_E1, num_rows, x_TD.scalar_type());
  rows.act_RF = activate_rows(rows.gate_up_R2F, routing);
  if (!keep) rows.gate_up_R2F.reset();
  return rows;
}

// Rows whose number in use lies with the last offset.
RowsToCode rows_in_use(const at::Tensor& offsets_E1) {
  const int32_t* last = offsets_E1.const_data_ptr<int32_t>() + offsets_E1.size(0) - 1;
  RowsToCode rows;
  if (offsets_E1.is_cpu()) {
    rows.most = *last;
  } else {
    rows.in_use = last;
  }
  return rows;
}

// (R, K): the gradient of a product's inputs from that of its outputs.
at::Tensor input_gradient(const at::Tensor& grad_RN, const at::Tensor& index_R, int64_t divisor,
                          const Int8TrainingWeight& weight, const at::Tensor& offsets_E1,
                          at::ScalarType dtype) {
  RowsToCode rows = rows_in_use(offsets_E1);
  rows.index_R = index_R;
  rows.divisor = divisor;
  rows.factors_GK = weight.scales_EN;
  rows.offsets_G1 = offsets_E1;
  const int64_t num_rows = index_R.defined() ? index_R.size(0) : grad_RN.size(0);
  return int8_grouped(coded_rows(grad_RN, kOneDigit, 0, rows), weight.transposed, {}, offsets_E1, num_rows,
                      dtype);
}

// As in ops/experts.cpp, whose comments on memory hold here too.
class Int8ExpertFfn : public torch::autograd::Function<Int8ExpertFfn> {
 public:
  static Variable forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                          const at::Tensor& down_EDF, const at::Tensor& weights_TK, const at::Tensor& order_R,
                          const at::Tensor& inverse_R, const at::Tensor& offsets_E1,
                          const Int8TrainingWeight& gate_up, const Int8TrainingWeight& down,
                          Int8FfnOptions options) {
    const Routing routing = kept_routing(weights_TK, {}, order_R, inverse_R, offsets_E1);
    ActivatedRows rows = activated_rows(x_TD, gate_up.forward, routing, options.keep_gate_up);
    const int64_t num_rows = order_R.size(0);
    const CodedRows act = coded_rows(rows.act_RF, kOneDigit, 0, rows_in_use(offsets_E1));
    rows.act_RF.reset();
    const at::Tensor y_RD = int8_grouped(act, down.forward, {}, offsets_E1, num_rows, x_TD.scalar_type());
    if (options.need_backward) {
      ctx->save_for_backward(
          {x_TD, gate_up_E2FD, down_EDF, weights_TK, order_R, inverse_R, offsets_E1, rows.gate_up_R2F});
      ctx->saved_data["gate_up_is_kept"] = options.keep_gate_up;
      save(ctx, "gate_up", gate_up);
      save(ctx, "down", down);
    }
    return combine_rows(y_RD, weights_TK, routing);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x_TD = saved[0], &weights_TK = saved[3], &order_R = saved[4], &offsets_E1 = saved[6];
    const Routing routing = kept_routing(weights_TK, {}, order_R, saved[5], offsets_E1);
    const Int8TrainingWeight gate_up = saved_weight(ctx, "gate_up"), down = saved_weight(ctx, "down");
    const at::Tensor grad_y_TD = grads[0].contiguous();
    const at::ScalarType dtype = x_TD.scalar_type();
    at::Tensor gate_up_R2F;
    if (ctx->saved_data["gate_up_is_kept"].toBool()) {
      gate_up_R2F = saved[7];
      ctx->saved_data["gate_up_is_kept"] = false;  // its memory becomes its gradient's
    } else {
      gate_up_R2F = activated_rows(x_TD, gate_up.forward, routing, true).gate_up_R2F;
    }
    at::Tensor grad_act_RF = input_gradient(grad_y_TD, order_R, weights_TK.size(1), down, offsets_E1, dtype);
    RoutedActivationGrads act =
        activate_routed_backward(std::move(gate_up_R2F), std::move(grad_act_RF), weights_TK, routing);
    at::Tensor grad_down_EDF, grad_gate_up_E2FD, grad_x_TD, grad_weights_TK;
    if (ctx->needs_input_grad(3)) grad_weights_TK = act.weights_TK;
    if (ctx->needs_input_grad(2))
      grad_down_EDF = grouped_mm_weight_grad(routed_rows_for(grad_y_TD, routing, down.transposed.n, true),
                                             {act.act_scaled_RF, {}, 1}, offsets_E1);
    act.act_scaled_RF.reset();
    const RowOperand grad_gate_up_rows{std::move(act.gate_up_R2F), {}, 1};
    if (ctx->needs_input_grad(0))
      grad_x_TD = combine_rows(input_gradient(grad_gate_up_rows.tensor, {}, 1, gate_up, offsets_E1, dtype),
                               {}, routing);
    if (ctx->needs_input_grad(1))
      grad_gate_up_E2FD = grouped_mm_weight_grad(
          grad_gate_up_rows, routed_rows_for(x_TD, routing, gate_up.forward.n, true), offsets_E1);
    return {grad_x_TD, grad_gate_up_E2FD, grad_down_EDF, grad_weights_TK, {}, {}, {}, {}, {}, {}};
  }

 private:
  // Codes are not differentiable and are not written to while a step's graph lives, so they need no version
  // check.
  static void save(AutogradContext* ctx, const std::string& name, const Int8TrainingWeight& weight) {
    for (const auto& [part, w] :
         {std::pair{".forward", &weight.forward}, {".transposed", &weight.transposed}}) {
      ctx->saved_data[name + part + ".packed"] = w->packed;
      ctx->saved_data[name + part + ".scales"] = w->scales;
      if (w->offsets.defined()) ctx->saved_data[name + part + ".offsets"] = w->offsets;
      ctx->saved_data[name + part + ".sizes"] =
          std::vector<int64_t>{w->num_groups, w->n, w->k, w->gate_up ? 1 : 0};
    }
    ctx->saved_data[name + ".scales"] = weight.scales_EN;
  }
  static Int8TrainingWeight saved_weight(AutogradContext* ctx, const std::string& name) {
    Int8TrainingWeight weight;
    for (const auto& [part, w] :
         {std::pair{".forward", &weight.forward}, {".transposed", &weight.transposed}}) {
      w->packed = ctx->saved_data[name + part + ".packed"].toTensor();
      w->scales = ctx->saved_data[name + part + ".scales"].toTensor();
      const auto offsets = ctx->saved_data.find(name + part + ".offsets");
      if (offsets != ctx->saved_data.end()) w->offsets = offsets->second.toTensor();
      const std::vector<int64_t> sizes = ctx->saved_data[name + part + ".sizes"].toIntVector();
      w->num_groups = sizes[0];
      w->n = sizes[1];
      w->k = sizes[2];
      w->gate_up = sizes[3] != 0;
    }
    weight.scales_EN = ctx->saved_data[name + ".scales"].toTensor();
    return weight;
  }
};

// Signed codes (E, N, K) of a weight's rows, on a CPU.
at::Tensor signed_codes(const CodedRows& rows, at::IntArrayRef sizes) {
  return rows.codes.narrow(1, 0, sizes[2]).to(at::kShort).sub_(128).to(at::kChar).view(sizes);
}

Int8TrainingWeight on_cpu(const at::Tensor& weight_ENK) {
  const int64_t experts = weight_ENK.size(0), n = weight_ENK.size(1), k = weight_ENK.size(2);
  const CodedRows rows = coded_rows(weight_ENK.view({experts * n, k}), kOneDigit, 0);
  const at::Tensor codes_ENK = signed_codes(rows, weight_ENK.sizes());
  Int8TrainingWeight weight;
  weight.scales_EN = rows.scales.view({experts, n});
  weight.forward = pack_int8(codes_ENK, weight.scales_EN);
  weight.transposed = pack_int8(codes_ENK.transpose(1, 2).contiguous(), at::ones({1}, rows.scales.options()));
  return weight;
}

// With rows as they are, what the rows' kernel writes is what the product reads.
void quantise_on_device(const at::Tensor& weight_ENK, Int8TrainingWeight& weight) {
  const int64_t experts = weight_ENK.size(0), n = weight_ENK.size(1), k = weight_ENK.size(2);
  const kernels::KernelTable& table = int8_kernels(weight_ENK.device());
  const kernels::Stream stream = current_stream(weight_ENK.device());
  kernels::Int8RowsArgs rows{};
  rows.x = weight_ENK.const_data_ptr();
  rows.index_divisor = 1;
  rows.codes = reinterpret_cast<uint8_t*>(weight.forward.packed.mutable_data_ptr<int8_t>());
  rows.scales = weight.scales_EN.mutable_data_ptr<float>();
  rows.num_rows = experts * n;
  rows.width = rows.x_stride = rows.codes_stride = k;
  rows.dtype = kernel_dtype(weight_ENK);
  table.int8_rows(rows, stream);
  kernels::Int8TransposeArgs turn{};
  turn.codes = weight.forward.packed.const_data_ptr<int8_t>();
  turn.out = weight.transposed.packed.mutable_data_ptr<int8_t>();
  turn.num_groups = experts;
  turn.n = n;
  turn.k = k;
  table.int8_transpose(turn, stream);
}

Int8TrainingWeight empty_on_device(const at::Tensor& weight_ENK) {
  const int64_t experts = weight_ENK.size(0), n = weight_ENK.size(1), k = weight_ENK.size(2);
  const at::TensorOptions floats = weight_ENK.options().dtype(at::kFloat), codes = floats.dtype(at::kChar);
  Int8TrainingWeight weight;
  weight.scales_EN = at::empty({experts, n}, floats);
  weight.forward.packed = at::empty({experts * n * k}, codes);
  weight.forward.scales = weight.scales_EN.view({-1});
  weight.transposed.packed = at::empty({experts * n * k}, codes);
  weight.transposed.scales = at::ones({experts * k}, floats);
  weight.forward.num_groups = weight.transposed.num_groups = experts;
  weight.forward.n = weight.transposed.k = n;
  weight.forward.k = weight.transposed.n = k;
  return weight;
}

}  // namespace

bool int8_training_serves(at::Device device, int64_t n, int64_t k) {
  return has_int8_products(device) &&
         (device.is_cpu() || (n % kernels::kInt8StepK == 0 && k % kernels::kInt8StepK == 0));
}

Int8TrainingWeight int8_training_weight(const at::Tensor& weight_ENK, bool activated,
                                        Int8TrainingWeight previous) {
  MOEBIUS_CHECK_EQ(weight_ENK.dim(), 3);
  MOEBIUS_CHECK(int8_training_serves(weight_ENK.device(), weight_ENK.size(1), weight_ENK.size(2)),
                "no integer products for weights of ", weight_ENK.sizes());
  const at::Tensor whole_ENK = weight_ENK.detach().contiguous();
  if (whole_ENK.is_cpu()) return on_cpu(whole_ENK);
  const bool fits = previous.scales_EN.defined() && previous.forward.num_groups == whole_ENK.size(0) &&
                    previous.forward.n == whole_ENK.size(1) && previous.forward.k == whole_ENK.size(2);
  Int8TrainingWeight weight = fits ? std::move(previous) : empty_on_device(whole_ENK);
  weight.forward.gate_up = activated;
  quantise_on_device(whole_ENK, weight);
  return weight;
}

at::Tensor int8_training_expert_ffn(const at::Tensor& x_TD, const at::Tensor& gate_up_E2FD,
                                    const at::Tensor& down_EDF, const Int8TrainingWeight& gate_up,
                                    const Int8TrainingWeight& down, const Routing& routing, bool recompute) {
  MOEBIUS_CHECK_EQ(gate_up.forward.k, x_TD.size(1));
  MOEBIUS_CHECK_EQ(gate_up.forward.n, 2 * down.forward.k);
  MOEBIUS_CHECK_EQ(down.forward.n, x_TD.size(1));
  MOEBIUS_CHECK_EQ(routing.offsets_E1.size(0), gate_up.forward.num_groups + 1);
  MOEBIUS_CHECK_EQ(routing.weights_TK.size(0), x_TD.size(0));
  MOEBIUS_CHECK(routing.weights_TK.scalar_type() == at::kFloat);
  MOEBIUS_CHECK(x_TD.scalar_type() == at::kBFloat16 || x_TD.is_cpu(), "int8 experts in ", x_TD.scalar_type());
  const bool need_backward =
      at::GradMode::is_enabled() && (x_TD.requires_grad() || gate_up_E2FD.requires_grad() ||
                                     down_EDF.requires_grad() || routing.weights_TK.requires_grad());
  return Int8ExpertFfn::apply(x_TD.contiguous(), gate_up_E2FD, down_EDF, routing.weights_TK.contiguous(),
                              routing.order_R, routing.inverse_R, routing.offsets_E1, gate_up, down,
                              Int8FfnOptions{need_backward && !recompute, need_backward});
}

}  // namespace moebius::ops
