#include "quant/int8_product.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "quant/format.h"

namespace moebius::quant {
namespace {

double relative(const at::Tensor& got, const at::Tensor& want) {
  return (got.to(at::kDouble) - want.to(at::kDouble)).norm().item<double>() /
         want.to(at::kDouble).norm().item<double>();
}

// Every token goes to experts t mod E and (t + 1) mod E.
ops::Routing simple_routing(int64_t tokens, int64_t experts) {
  std::vector<int32_t> order, offsets{0}, inverse(static_cast<size_t>(2 * tokens)), chosen;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < 2; ++k) chosen.push_back(static_cast<int32_t>((t + k) % experts));
  for (int64_t e = 0; e < experts; ++e) {
    for (size_t slot = 0; slot < chosen.size(); ++slot)
      if (chosen[slot] == e) {
        inverse[slot] = static_cast<int32_t>(order.size());
        order.push_back(static_cast<int32_t>(slot));
      }
    offsets.push_back(static_cast<int32_t>(order.size()));
  }
  ops::Routing routing;
  routing.weights_TK = at::rand({tokens, 2}) + 0.2;
  routing.experts_TK = at::tensor(chosen, at::kInt).view({tokens, 2});
  routing.order_R = at::tensor(order, at::kInt);
  routing.inverse_R = at::tensor(inverse, at::kInt);
  routing.offsets_E1 = at::tensor(offsets, at::kInt);
  return routing;
}

TEST(Int8Product, multiplies_as_the_dequantised_weight_does) {
  at::manual_seed(1);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({70, 45}) / 7, x = at::randn({2, 5, 45}).to(dtype);
    const Quantised q = quantise(weight, Granularity::per_row);
    const Int8Product eight(q.codes, q.scales, Scheme::int8_w8a8, WeightUse::linear, dtype);
    const Int8Product sixteen(q.codes, q.scales, Scheme::int8_w8a16, WeightUse::linear, dtype);
    EXPECT_TRUE(at::equal(eight.values({}), dequantise(q.codes, q.scales, dtype)));
    const at::Tensor want = at::matmul(x.to(at::kDouble), dequantise(q.codes, q.scales).to(at::kDouble).t());
    const double rounding = dtype == at::kFloat ? 0 : 3e-3;
    const at::Tensor bias = at::randn({70}).to(dtype);
    EXPECT_LT(relative(eight.linear(x, {}), want), 1e-2 + rounding);
    EXPECT_GT(relative(eight.linear(x, {}), want), 1e-3);
    EXPECT_LT(relative(sixteen.linear(x, {}), want), 5e-5 + rounding);
    EXPECT_LT(relative(linear(x, {}, bias, &sixteen), want + bias.to(at::kDouble)), 5e-5 + 2 * rounding);
    EXPECT_EQ(eight.linear(x, {}).scalar_type(), dtype);
  }
}

TEST(Int8Product, holds_half_of_bf16) {
  const Quantised q = quantise(at::randn({4, 96, 512}), Granularity::per_row);
  const Int8Product product(q.codes, q.scales, Scheme::int8_w8a8, WeightUse::experts, at::kBFloat16);
  EXPECT_LE(static_cast<double>(product.num_bytes()), 0.52 * 2 * 4 * 96 * 512);
}

TEST(Int8Product, of_experts_does_what_the_float_experts_do_in_every_form) {
  at::manual_seed(2);
  constexpr int64_t kTokens = 23, kExperts = 4, kDim = 40, kHidden = 24;
  const ops::Routing routing = simple_routing(kTokens, kExperts);
  const at::Tensor x = at::randn({kTokens, kDim});
  const Quantised up = quantise(at::randn({kExperts, 2 * kHidden, kDim}) / 6, Granularity::per_row);
  const Quantised down = quantise(at::randn({kExperts, kDim, kHidden}) / 5, Granularity::per_row);
  for (const bool biased : {false, true})
    for (const bool clamped : {false, true}) {
      ExpertWeights plain;
      plain.gate_up_E2FD = dequantise(up.codes, up.scales);
      plain.down_EDF = dequantise(down.codes, down.scales);
      plain.form.clamped = clamped;
      plain.form.limit = 1.0;
      if (biased) {
        plain.form.gate_up_bias_E2F = at::randn({kExperts, 2 * kHidden});
        plain.form.down_bias_ED = at::randn({kExperts, kDim});
      }
      const at::Tensor want = expert_ffn(x, routing, plain, false);
      const WeightUse use = plain.form.is_plain() ? WeightUse::activated_experts : WeightUse::experts;
      for (const Scheme scheme : {Scheme::int8_w8a8, Scheme::int8_w8a16}) {
        const Int8Product gate_up_product(up.codes, up.scales, scheme, use, at::kFloat);
        const Int8Product down_product(down.codes, down.scales, scheme, WeightUse::experts, at::kFloat);
        EXPECT_TRUE(at::equal(gate_up_product.values({}), plain.gate_up_E2FD));
        ExpertWeights held;
        held.form = plain.form;
        held.gate_up_product = &gate_up_product;
        held.down_product = &down_product;
        const double error = relative(expert_ffn(x, routing, held, false), want);
        EXPECT_LT(error, scheme == Scheme::int8_w8a8 ? 2e-2 : 1e-4)
            << (biased ? "biased " : "") << (clamped ? "clamped " : "") << name_of(scheme);
      }
    }
}

TEST(Int8Product, a_row_that_is_not_finite_stays_alone) {
  at::manual_seed(3);
  const Quantised q = quantise(at::randn({33, 20}), Granularity::per_row);
  at::Tensor x = at::randn({4, 20});
  x[2][7] = INFINITY;
  for (const Scheme scheme : {Scheme::int8_w8a8, Scheme::int8_w8a16}) {
    const Int8Product product(q.codes, q.scales, scheme, WeightUse::linear, at::kFloat);
    const at::Tensor y = product.linear(x, {});
    EXPECT_TRUE(y[2].isnan().all().item<bool>());
    EXPECT_TRUE(y.isfinite().sum(1).eq(at::tensor({33, 33, 0, 33})).all().item<bool>());
  }
}

TEST(Int8Product, schemes_have_names) {
  for (const std::string& name : scheme_names()) EXPECT_EQ(name_of(*scheme_of(name)), name);
  EXPECT_FALSE(scheme_of("int3-w3a16"));
}

}  // namespace
}  // namespace moebius::quant
