// Shapes: T tokens, R rows (T*K), D model width, F expert width, N outputs, Q groups of a row.
#include "quant/int4_product.h"

#include <ATen/ops/pad.h>

#include "base/check.h"
#include "ops/expert_rows.h"
#include "quant/expert_activation.h"
#include "quant/format.h"
#include "quant/range.h"

namespace moebius::quant {
namespace {

constexpr int kInt4CodeBits = 4;

const Int4Product& as_int4(const Product* product) {
  const auto* const own = dynamic_cast<const Int4Product*>(product);
  MOEBIUS_CHECK(own != nullptr, "experts' weights of two kinds");
  return *own;
}

}  // namespace

Int4Codes int4_codes(const at::Tensor& rows_NK, int64_t group) {
  const int64_t n = rows_NK.size(0), k = rows_NK.size(1), quads = (k + group - 1) / group;
  const at::Tensor grouped =
      at::pad(rows_NK.detach().to(at::kFloat), {0, quads * group - k}).view({n * quads, group});
  RangeOptions options;
  options.rule = RangeRule::mse;
  options.bits = kInt4CodeBits;
  const at::Tensor scales = scales_of(chosen_range(grouped, Sharing::row, options), kInt4CodeBits);
  const at::Tensor codes = codes_of(grouped, scales, kInt4CodeBits)
                               .add_(8)
                               .to(at::kByte)
                               .view({n, quads * group})
                               .narrow(1, 0, k + k % 2);
  const at::Tensor pairs = codes.unflatten(1, {-1, 2});
  return {pairs.select(2, 0).bitwise_or(pairs.select(2, 1).bitwise_left_shift(4)).contiguous(),
          scales.view({n, quads})};
}

Int4Product::Int4Product(const Int4Codes& codes, int64_t k, int64_t group, at::ScalarType dtype)
    : weight_(ops::pack_int4(codes.codes, codes.scales, k, group)), dtype_(dtype) {}

at::Tensor Int4Product::linear(const at::Tensor& x, const at::Tensor& /*weight_NK*/) const {
  return ops::int4_linear(x, weight_);
}

at::Tensor Int4Product::expert_ffn(const at::Tensor& x_TD, const ops::Routing& routing,
                                   const ExpertWeights& experts, bool /*recompute*/) const {
  const Int4Product& down = as_int4(experts.down_product);
  const at::Tensor gate_up_R2F =
      ops::int4_grouped_mm(x_TD, routing.order_R, routing.weights_TK.size(1), weight_,
                           fp32_bias(experts.form.gate_up_bias_E2F), routing.offsets_E1, at::kFloat);
  const at::Tensor y_RD =
      ops::int4_grouped_mm(expert_activation(gate_up_R2F, experts.form, routing), {}, 1, down.weight_,
                           fp32_bias(experts.form.down_bias_ED), routing.offsets_E1, x_TD.scalar_type());
  return ops::combine_rows(y_RD, routing.weights_TK.detach().contiguous(), routing);
}

at::Tensor Int4Product::values(const at::Tensor& /*weight*/) const {
  return ops::unpack_int4(weight_, dtype_);
}

int64_t Int4Product::num_bytes() const {
  return static_cast<int64_t>(weight_.packed.nbytes() + weight_.scales.nbytes() + weight_.sums.nbytes());
}

}  // namespace moebius::quant
