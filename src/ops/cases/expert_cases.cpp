#include <ATen/ATen.h>

#include <cmath>

#include "base/concat.h"
#include "ops/biased_experts.h"
#include "ops/cases/case.h"
#include "ops/cases/plain_routing.h"
#include "ops/experts.h"
#include "ops/int8_training.h"

namespace moebius::ops::cases {
namespace {

enum class Choices : uint8_t {
  random,
  without_odd_experts,  // every second expert gets nothing
  one_expert,           // all slots of all tokens in the last expert
};

struct ExpertRow {
  std::string name;
  int64_t tokens, experts, top_k, width, hidden;
  Choices choices = Choices::random;
  int64_t capacity = -1;
  bool recompute = false;
  Size size = Size::small;
  bool cuda = true;
  bool biased = false;  // ops/biased_experts.h
  double limit = 0;     // of the clamped activation; 0: the usual one
  bool int8 = false;    // ops/int8_training.h, its weights rounded anew at each call

  bool clamped() const { return limit > 0; }
};

constexpr double kAlpha = 1.702;
// Limits that random numbers reach often, and hardly ever. At a limit the gradient jumps, so that one
// rounding to bf16 changes it: there only the latter.
constexpr double kNearLimit = 1.5, kFarLimit = 12.0;

// (T, K) different experts for each token, except for one_expert.
at::Tensor choose(const ExpertRow& row) {
  if (row.choices == Choices::one_expert) return at::full({row.tokens, row.top_k}, row.experts - 1, at::kInt);
  at::Tensor scores = at::rand({row.tokens, row.experts});
  if (row.choices == Choices::without_odd_experts) scores.slice(1, 1, row.experts, 2).sub_(2.0);
  return std::get<1>(at::topk(scores, row.top_k)).to(at::kInt);
}

// in: x, gate_up, down, weights, experts, order, inverse, offsets.
Routing routing_of(const Tensors& in) {
  Routing routing;
  routing.weights_TK = in[3];
  routing.experts_TK = in[4];
  routing.order_R = in[5];
  routing.inverse_R = in[6];
  routing.offsets_E1 = in[7];
  return routing;
}

// Expert by expert, the tokens of all its kept slots.
at::Tensor plain_experts(const Tensors& in, const ExpertRow& row) {
  const at::Tensor &x = in[0], &gate_up = in[1], &down = in[2], &weights = in[3], &offsets = in[7];
  const at::Tensor slots = in[5].to(at::kLong);
  const at::Tensor tokens = slots.div(at::Scalar(weights.size(1)), /*rounding_mode=*/"floor");
  std::vector<at::Tensor> outs;
  for (int64_t e = 0; e < gate_up.size(0); ++e) {
    const int64_t begin = offsets[e].item<int32_t>(), count = offsets[e + 1].item<int32_t>() - begin;
    const at::Tensor rows = x.index_select(0, tokens.narrow(0, begin, count));
    at::Tensor products = at::mm(rows, gate_up[e].t());
    if (row.biased) products = products + in[8][e];
    const at::Tensor pairs = products.unflatten(1, {-1, 2});
    at::Tensor gate = pairs.select(2, 0), up = pairs.select(2, 1);
    if (row.clamped()) {
      gate = gate.clamp_max(row.limit);
      up = up.clamp(-row.limit, row.limit) + 1;
    }
    const at::Tensor act = gate * at::sigmoid(row.clamped() ? gate * kAlpha : gate) * up;
    outs.push_back(at::mm(act, down[e].t()));
    if (row.biased) outs.back() = outs.back() + in[9][e];
  }
  const at::Tensor rows = at::cat(outs);
  const at::Tensor scale = weights.view(-1).index_select(0, slots.narrow(0, 0, rows.size(0)));
  return at::zeros_like(x.detach())
      .index_add(0, tokens.narrow(0, 0, rows.size(0)), rows * scale.unsqueeze(1));
}

Example expert_example(const ExpertRow& row) {
  const double d = static_cast<double>(row.width), f = static_cast<double>(row.hidden);
  const at::Tensor experts = choose(row);
  const PlainOrder sorted = plain_order(experts, row.experts, row.capacity);
  const auto form = [row](const Tensors& in) {
    ExpertForm form;
    form.clamped = row.clamped();
    form.alpha = kAlpha;
    if (row.clamped()) form.limit = row.limit;
    if (row.biased) {
      form.gate_up_bias_E2F = in[8];
      form.down_bias_ED = in[9];
    }
    return form;
  };
  std::vector<Input> inputs{
      {"x", at::randn({row.tokens, row.width}, at::kDouble)},
      {"gate_up", at::randn({row.experts, 2 * row.hidden, row.width}, at::kDouble) / std::sqrt(d)},
      {"down", at::randn({row.experts, row.width, row.hidden}, at::kDouble) / std::sqrt(f)},
      {"weights", at::rand({row.tokens, row.top_k}, at::kDouble) + 0.1, InputKind::f32},
      {"experts", experts, InputKind::index},
      {"order", sorted.order_R, InputKind::index},
      {"inverse", sorted.inverse_R, InputKind::index},
      {"offsets", sorted.offsets_E1, InputKind::index}};
  if (row.biased) {
    inputs.push_back({"gate_up_bias", at::randn({row.experts, 2 * row.hidden}, at::kDouble)});
    inputs.push_back({"down_bias", at::randn({row.experts, row.width}, at::kDouble)});
  }
  return {
      inputs,
      [row, form](const Tensors& in) {
        const Routing routing = routing_of(in);
        if (row.int8)
          return Outputs{
              {"y", int8_training_expert_ffn(in[0], in[1], in[2], int8_training_weight(in[1], true),
                                             int8_training_weight(in[2], false), routing, row.recompute)}};
        return Outputs{{"y", row.biased || row.clamped()
                                 ? biased_expert_ffn(in[0], in[1], in[2], routing, form(in), row.recompute)
                                 : expert_ffn(in[0], in[1], in[2], routing, row.recompute)}};
      },
      [row](const Tensors& in) {
        return Outputs{{"y", plain_experts(in, row)}};
      }};
}

}  // namespace

void add_expert_cases(CaseList& cases) {
  const std::vector<ExpertRow> rows{
      {"one_token_e8_k2_d16_f24", 1, 8, 2, 16, 24},
      {"t19_e5_k1_d13_f11", 19, 5, 1, 13, 11, Choices::random, -1, false, Size::small, false},
      {"t19_e5_k3_d13_f11_capacity4", 19, 5, 3, 13, 11, Choices::random, 4, false, Size::small, false},
      {"t65_e1_k1_d32_f40", 65, 1, 1, 32, 40},
      {"t65_e8_k2_d40_f72_empty_experts", 65, 8, 2, 40, 72, Choices::without_odd_experts},
      {"t65_e8_k2_d40_f72_empty_experts_recompute", 65, 8, 2, 40, 72, Choices::without_odd_experts, -1, true},
      {"t129_e4_k2_d64_f48_all_to_one", 129, 4, 2, 64, 48, Choices::one_expert},
      {"t129_e4_k2_d64_f48_all_to_one_capacity30", 129, 4, 2, 64, 48, Choices::one_expert, 30},
      {"t65_e8_k2_d40_f72_capacity9_recompute", 65, 8, 2, 40, 72, Choices::random, 9, true},
      {"t12_e3_k1_d8_f8_capacity0", 12, 3, 1, 8, 8, Choices::random, 0},
      {"t64_e512_k4_d16_f8", 64, 512, 4, 16, 8},
      {"biased_one_token_e8_k2_d16_f24", 1, 8, 2, 16, 24, Choices::random, -1, false, Size::small, true,
       true},
      {"biased_t65_e8_k2_d40_f72_empty_experts", 65, 8, 2, 40, 72, Choices::without_odd_experts, -1, false,
       Size::small, true, true},
      {"clamped_t65_e8_k2_d40_f72", 65, 8, 2, 40, 72, Choices::random, -1, false, Size::small, true, false,
       kNearLimit},
      {"biased_clamped_t19_e5_k3_d13_f11_capacity4", 19, 5, 3, 13, 11, Choices::random, 4, false, Size::small,
       false, true, kNearLimit},
      {"biased_clamped_t65_e8_k2_d40_f72_recompute", 65, 8, 2, 40, 72, Choices::random, -1, true, Size::small,
       true, true, kFarLimit},
      {"biased_clamped_t65_e8_k2_d40_f72_capacity9", 65, 8, 2, 40, 72, Choices::random, 9, false, Size::small,
       true, true, kFarLimit},
      {"t2048_e8_k2_d128_f256", 2048, 8, 2, 128, 256, Choices::random, -1, false, Size::bench},
      {"t4096_e8_k2_d384_f640", 4096, 8, 2, 384, 640, Choices::random, -1, false, Size::bench},
      {"t16384_e8_k2_d4096_f14336", 16384, 8, 2, 4096, 14336, Choices::random, -1, false, Size::large},
      {"t16384_e64_k8_d2048_f1024", 16384, 64, 8, 2048, 1024, Choices::random, -1, false, Size::large},
      {"t16384_e128_k8_d2048_f768", 16384, 128, 8, 2048, 768, Choices::random, -1, false, Size::large},
  };
  // On a GPU in bf16 and multiples of 16 only.
  std::vector<ExpertRow> int8_rows{
      {"one_token_e8_k2_d16_f32", 1, 8, 2, 16, 32},
      {"t65_e8_k2_d48_f80_empty_experts", 65, 8, 2, 48, 80, Choices::without_odd_experts},
      {"t129_e4_k2_d64_f48_all_to_one_capacity30", 129, 4, 2, 64, 48, Choices::one_expert, 30},
      {"t65_e8_k2_d48_f80_capacity9_recompute", 65, 8, 2, 48, 80, Choices::random, 9, true},
      {"t12_e3_k1_d16_f16_capacity0", 12, 3, 1, 16, 16, Choices::random, 0},
      {"t300_e8_k4_d256_f160", 300, 8, 4, 256, 160},
      {"t19_e5_k3_d13_f11_capacity4", 19, 5, 3, 13, 11, Choices::random, 4, false, Size::small, false},
      {"t4096_e8_k2_d384_f640", 4096, 8, 2, 384, 640, Choices::random, -1, false, Size::bench},
      {"t16384_e8_k2_d4096_f14336", 16384, 8, 2, 4096, 14336, Choices::random, -1, false, Size::large}};
  for (ExpertRow& row : int8_rows) {
    row.int8 = true;
    const double forward = 6.0 * static_cast<double>(row.tokens * row.top_k * row.width * row.hidden);
    cases.push_back({.name = "int8_training_expert_ffn/" + row.name,
                     .op_class = OpClass::trained_in_codes,
                     .work = {Work::Unit::flops, forward, 2 * forward},
                     .dtypes = row.cuda ? std::vector{at::kBFloat16} : both_dtypes(),
                     .size = row.size,
                     .cuda = row.cuda,
                     .make = [row] { return expert_example(row); }});
  }
  for (const ExpertRow& row : rows) {
    const double forward = 6.0 * static_cast<double>(row.tokens * row.top_k * row.width * row.hidden);
    cases.push_back({.name = "expert_ffn/" + row.name,
                     .op_class = OpClass::chain,
                     .work = {Work::Unit::flops, forward, 2 * forward},
                     .dtypes = row.limit == kNearLimit ? std::vector{at::kFloat} : both_dtypes(),
                     .size = row.size,
                     .cuda = row.cuda,
                     .make = [row] { return expert_example(row); }});
  }
}

}  // namespace moebius::ops::cases
