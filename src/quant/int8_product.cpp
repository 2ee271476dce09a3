// Shapes: T tokens, R rows (T*K), D model width, F expert width, E experts.
#include "quant/int8_product.h"

#include "base/check.h"
#include "ops/expert_rows.h"
#include "quant/expert_activation.h"

namespace moebius::quant {
namespace {

constexpr struct {
  Scheme scheme;
  const char* name;
} kSchemes[] = {
    {Scheme::int8_w8a8, "int8-w8a8"}, {Scheme::int8_w8a16, "int8-w8a16"}, {Scheme::int4_w4a16, "int4-w4a16"}};

const Int8Product& as_int8(const Product* product) {
  const auto* const own = dynamic_cast<const Int8Product*>(product);
  MOEBIUS_CHECK(own != nullptr, "experts' weights of two kinds");
  return *own;
}

}  // namespace

const char* name_of(Scheme scheme) {
  for (const auto& each : kSchemes)
    if (each.scheme == scheme) return each.name;
  return "";
}

std::optional<Scheme> scheme_of(const std::string& name) {
  for (const auto& each : kSchemes)
    if (each.name == name) return each.scheme;
  return std::nullopt;
}

std::vector<std::string> scheme_names() {
  std::vector<std::string> names;
  for (const auto& each : kSchemes) names.emplace_back(each.name);
  return names;
}

Int8Product::Int8Product(const at::Tensor& codes, const at::Tensor& scales, Scheme scheme, WeightUse use,
                         at::ScalarType dtype)
    : weight_(ops::pack_int8(codes, scales, use == WeightUse::activated_experts)),
      activations_(scheme == Scheme::int8_w8a16 ? ops::Int8Activations::two_digits
                                                : ops::Int8Activations::one_digit),
      dtype_(dtype) {
  MOEBIUS_CHECK(scheme != Scheme::int4_w4a16, "int4 weights have another product");
  MOEBIUS_CHECK_EQ(codes.dim(), use == WeightUse::linear ? 2 : 3);
}

at::Tensor Int8Product::linear(const at::Tensor& x, const at::Tensor& /*weight_NK*/) const {
  return ops::int8_linear(x, weight_, {}, activations_);
}

at::Tensor Int8Product::expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing,
                                   const ExpertWeights& experts, bool /*recompute*/) const {
  const Int8Product& down = as_int8(experts.down_product);
  if (weight_.gate_up) {
    MOEBIUS_CHECK(experts.form.is_plain(), "experts packed for SwiGLU have another form");
    return ops::int8_expert_ffn(x_TD, weight_, down.weight_, routing, activations_);
  }
  const at::Tensor gate_up_R2F = ops::int8_grouped_mm(x_TD, routing.order_R, routing.weights_TK.size(1),
                                                      weight_, fp32_bias(experts.form.gate_up_bias_E2F),
                                                      routing.offsets_E1, at::kFloat, activations_);
  const at::Tensor y_RD = ops::int8_grouped_mm(expert_activation(gate_up_R2F, experts.form, routing), {}, 1,
                                               down.weight_, fp32_bias(experts.form.down_bias_ED),
                                               routing.offsets_E1, x_TD.scalar_type(), down.activations_);
  return ops::combine_rows(y_RD, routing.weights_TK.detach().contiguous(), routing);
}

at::Tensor Int8Product::values(const at::Tensor& /*weight*/) const {
  return ops::unpack_int8(weight_, dtype_);
}

int64_t Int8Product::num_bytes() const {
  const size_t offsets = weight_.offsets.defined() ? weight_.offsets.nbytes() : 0;
  return static_cast<int64_t>(weight_.packed.nbytes() + weight_.scales.nbytes() + offsets);
}

}  // namespace moebius::quant
