#include <ATen/ATen.h>

#include <cmath>

#include "base/concat.h"
#include "kernels/api/int8_format.h"
#include "ops/cases/case.h"
#include "ops/cases/plain_routing.h"
#include "ops/int8_linear.h"

namespace moebius::ops::cases {
namespace {

// The format in double precision on rows: codes and scales as fp32 arithmetic gives them, so that the
// reference rounds the same values the same way (kernels/api/int8_format.h).
struct PlainCodes {
  at::Tensor codes, scales;  // double
};

PlainCodes plain_codes(const at::Tensor& x_RK) {
  const at::Tensor x = x_RK.to(at::kFloat);
  const at::Tensor range = x.size(1) > 0 ? x.abs().amax(1, true) : at::zeros({x.size(0), 1});
  const at::Tensor scale = range / at::full({}, 127, at::kFloat);
  const at::Tensor usable = scale.ge(kernels::kSmallestScale);
  const at::Tensor inverse = at::where(usable, scale.reciprocal(), at::zeros({}, at::kFloat));
  const at::Tensor codes = (x * inverse).clamp(-127, 127).round();
  return {codes.to(at::kDouble), (scale * usable).to(at::kDouble)};
}

// Random codes as an index input stays as it is: int8 (.., K) with scales that make products near 1.
at::Tensor random_codes(at::IntArrayRef sizes) {
  return at::randint(-127, 128, sizes, at::TensorOptions().dtype(at::kChar));
}

at::Tensor random_scales(at::IntArrayRef sizes, int64_t k) {
  return (at::rand(sizes, at::kDouble) + 0.5) / (70 * std::sqrt(static_cast<double>(k)));
}

struct Int8LinearRow {
  int64_t rows, n, k;
  Size size = Size::small;
  bool one_scale = false, bias = false;
};

Example int8_linear_example(const Int8LinearRow& row) {
  std::vector<Input> inputs{
      {"x", at::randn({row.rows, row.k}, at::kDouble), InputKind::typed_constant},
      {"codes", random_codes({row.n, row.k}), InputKind::index},
      {"scales", random_scales({row.one_scale ? 1 : row.n}, row.k), InputKind::constant}};
  if (row.bias) inputs.push_back({"bias", at::randn({row.n}, at::kDouble), InputKind::typed_constant});
  // Packing is done once for a weight, so that it is not part of what is timed.
  const auto packed = std::make_shared<Int8Weight>();
  return {inputs,
          [row, packed](const Tensors& in) {
            if (packed->n == 0) *packed = pack_int8(in[1], in[2]);
            return Outputs{{"y", int8_linear(in[0], *packed, row.bias ? in[3] : at::Tensor())}};
          },
          [row](const Tensors& in) {
            const PlainCodes x = plain_codes(in[0]);
            const at::Tensor sums = at::mm(x.codes, in[1].to(at::kDouble).t());
            const at::Tensor y = sums * x.scales * in[2].unsqueeze(0);
            return Outputs{{"y", row.bias ? y + in[3] : y}};
          }};
}

struct Int8ExpertRow {
  std::string name;
  int64_t tokens, experts, top_k, width, hidden;
  int64_t capacity = -1;
  Size size = Size::small;
};

// in: x, gate_up codes, scales, down codes, scales, weights, experts, order, inverse, offsets.
Routing int8_routing(const Tensors& in) {
  Routing routing;
  routing.weights_TK = in[5];
  routing.experts_TK = in[6];
  routing.order_R = in[7];
  routing.inverse_R = in[8];
  routing.offsets_E1 = in[9];
  return routing;
}

at::Tensor plain_int8_experts(const Tensors& in) {
  const PlainCodes x = plain_codes(in[0]);
  const at::Tensor &weights = in[5], &offsets = in[9];
  const at::Tensor slots = in[7].to(at::kLong);
  const at::Tensor tokens = slots.div(at::Scalar(weights.size(1)), /*rounding_mode=*/"floor");
  std::vector<at::Tensor> outs;
  for (int64_t e = 0; e < in[1].size(0); ++e) {
    const int64_t begin = offsets[e].item<int32_t>(), count = offsets[e + 1].item<int32_t>() - begin;
    const at::Tensor chosen = tokens.narrow(0, begin, count);
    const at::Tensor sums = at::mm(x.codes.index_select(0, chosen), in[1][e].to(at::kDouble).t());
    const at::Tensor pairs =
        (sums * x.scales.index_select(0, chosen) * in[2][e].unsqueeze(0)).unflatten(1, {-1, 2});
    const at::Tensor gate = pairs.select(2, 0);
    const PlainCodes act = plain_codes(gate * at::sigmoid(gate) * pairs.select(2, 1));
    outs.push_back(at::mm(act.codes, in[3][e].to(at::kDouble).t()) * act.scales * in[4][e].unsqueeze(0));
  }
  const at::Tensor rows = at::cat(outs);
  const at::Tensor scale = weights.view(-1).index_select(0, slots.narrow(0, 0, rows.size(0)));
  return at::zeros_like(in[0]).index_add(0, tokens.narrow(0, 0, rows.size(0)), rows * scale.unsqueeze(1));
}

Example int8_expert_example(const Int8ExpertRow& row) {
  const at::Tensor experts =
      std::get<1>(at::topk(at::rand({row.tokens, row.experts}), row.top_k)).to(at::kInt);
  const PlainOrder sorted = plain_order(experts, row.experts, row.capacity);
  std::vector<Input> inputs{
      {"x", at::randn({row.tokens, row.width}, at::kDouble), InputKind::typed_constant},
      {"gate_up", random_codes({row.experts, 2 * row.hidden, row.width}), InputKind::index},
      {"gate_up_scales", random_scales({row.experts, 2 * row.hidden}, row.width), InputKind::constant},
      {"down", random_codes({row.experts, row.width, row.hidden}), InputKind::index},
      {"down_scales", random_scales({row.experts, row.width}, row.hidden), InputKind::constant},
      {"weights", at::rand({row.tokens, row.top_k}, at::kDouble) + 0.1, InputKind::constant},
      {"experts", experts, InputKind::index},
      {"order", sorted.order_R, InputKind::index},
      {"inverse", sorted.inverse_R, InputKind::index},
      {"offsets", sorted.offsets_E1, InputKind::index}};
  const auto packed = std::make_shared<std::pair<Int8Weight, Int8Weight>>();
  return {inputs,
          [packed](const Tensors& in) {
            if (packed->first.n == 0)
              *packed = {pack_int8(in[1], in[2], /*gate_up=*/true), pack_int8(in[3], in[4])};
            return Outputs{{"y", int8_expert_ffn(in[0], packed->first, packed->second, int8_routing(in),
                                                 Int8Activations::one_digit)}};
          },
          [](const Tensors& in) {
            return Outputs{{"y", plain_int8_experts(in)}};
          }};
}

}  // namespace

void add_int8_cases(CaseList& cases) {
  for (const Int8LinearRow row : {Int8LinearRow{1, 1, 1},
                                  {1, 33, 70},
                                  {51, 5, 3},
                                  {129, 72, 40, Size::small, true},
                                  {16, 100, 257, Size::small, false, true},
                                  {0, 16, 8},
                                  {1024, 1024, 1024, Size::bench},
                                  {256, 1408, 2048, Size::bench},
                                  {16, 4096, 4096, Size::bench},
                                  {4, 4096, 4096, Size::bench},
                                  {1, 4096, 4096, Size::bench},
                                  {64, 4096, 4096, Size::bench},
                                  {4096, 4096, 4096, Size::large}}) {
    cases.push_back({.name = concat("int8_linear/r", row.rows, "_n", row.n, "_k", row.k,
                                    row.one_scale ? "_one_scale" : "", row.bias ? "_bias" : ""),
                     .op_class = OpClass::product,
                     .work = {Work::Unit::flops, 2.0 * static_cast<double>(row.rows * row.n * row.k)},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return int8_linear_example(row); }});
  }
  const std::vector<Int8ExpertRow> rows{
      {"one_token_e8_k2_d16_f24", 1, 8, 2, 16, 24},
      {"t19_e5_k3_d13_f11_capacity4", 19, 5, 3, 13, 11, 4},
      {"t65_e8_k2_d40_f72", 65, 8, 2, 40, 72},
      {"t64_e512_k4_d16_f8", 64, 512, 4, 16, 8},
      {"t12_e3_k1_d8_f8_capacity0", 12, 3, 1, 8, 8, 0},
      {"t2048_e8_k2_d128_f256", 2048, 8, 2, 128, 256, -1, Size::bench},
      {"t4096_e8_k2_d384_f640", 4096, 8, 2, 384, 640, -1, Size::bench},
      {"t16384_e8_k2_d4096_f14336", 16384, 8, 2, 4096, 14336, -1, Size::large}};
  for (const Int8ExpertRow& row : rows) {
    const double forward = 6.0 * static_cast<double>(row.tokens * row.top_k * row.width * row.hidden);
    cases.push_back({.name = "int8_expert_ffn/" + row.name,
                     // A value next to the middle between two codes may be rounded the other way than in the
                     // reference: one step of the activation's 127.
                     .op_class = OpClass::rounded,
                     .work = {Work::Unit::flops, forward},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return int8_expert_example(row); }});
  }
}

}  // namespace moebius::ops::cases
