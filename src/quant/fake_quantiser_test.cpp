#include "quant/fake_quantiser.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/experts.h"
#include "ops/linear.h"
#include "quant/format.h"

namespace moebius::quant {
namespace {

using Mode = FakeQuantiser::Mode;
using Compensation = FakeQuantiserOptions::Compensation;

const at::Tensor& fine() {
  static const at::Tensor one = at::ones({});
  return one;
}

at::Tensor parameter(at::IntArrayRef sizes) {
  return at::randn(sizes).mul_(0.1).set_requires_grad(true);
}

at::Tensor state_named(const FakeQuantiser& quantiser, const std::string& name) {
  for (const std::vector<QuantState>& states : {quantiser.state(), quantiser.steps()})
    for (const QuantState& state : states)
      if (state.name == name) return state.tensor;
  ADD_FAILURE() << "no state " << name;
  return {};
}

// Three tokens for each of five experts and one that nobody chose.
ops::Routing some_routing(int64_t capacity = -1) {
  at::manual_seed(11);
  at::Tensor logits = at::randn({15, 6});
  logits.select(1, 4).fill_(-20);
  ops::RouteOptions options;
  options.capacity = capacity;
  return ops::route(logits.set_requires_grad(true), {}, {}, 1, options);
}

struct ExpertGradients {
  at::Tensor y, x, gate_up, down, logits_weights;
};

ExpertGradients expert_gradients(const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down,
                                 const ops::Routing& routing, const ops::ExpertForm& form,
                                 const Product* gate_up_product, const Product* down_product) {
  ops::Routing own = routing;
  own.weights_TK = routing.weights_TK.detach().clone().set_requires_grad(true);
  ExpertWeights experts;
  experts.gate_up_E2FD = gate_up;
  experts.down_EDF = down;
  experts.form = form;
  experts.gate_up_product = gate_up_product;
  experts.down_product = down_product;
  const at::Tensor y = expert_ffn(x, own, experts, false);
  at::manual_seed(12);
  y.backward(at::randn(y.sizes()));
  ExpertGradients result{y.detach(), x.grad().clone(), gate_up.grad().clone(), down.grad().clone(),
                         own.weights_TK.grad()};
  for (const at::Tensor* each : {&x, &gate_up, &down}) each->mutable_grad().reset();
  return result;
}

TEST(FakeQuantiser, experts_in_steps_are_the_fused_experts) {
  at::manual_seed(10);
  const at::Tensor x = parameter({15, 12}), gate_up = parameter({6, 16, 12}), down = parameter({6, 12, 8});
  ops::ExpertForm biased;
  biased.gate_up_bias_E2F = parameter({6, 16});
  biased.down_bias_ED = parameter({6, 12});
  ops::ExpertForm clamped = biased;
  clamped.clamped = true;
  for (const int64_t capacity : {-1, 4})
    for (const ops::ExpertForm& form : {ops::ExpertForm{}, biased, clamped}) {
      const ops::Routing routing = some_routing(capacity);
      FakeQuantiser quantiser({});
      const auto gate_up_product = quantiser.add("gate_up", gate_up),
                 down_product = quantiser.add("down", down);
      quantiser.set_mode(Mode::observing);
      const ExpertGradients one =
          expert_gradients(x, gate_up, down, routing, form, gate_up_product.get(), down_product.get());
      const ExpertGradients two = expert_gradients(x, gate_up, down, routing, form, nullptr, nullptr);
      EXPECT_TRUE(at::allclose(one.y, two.y, 1e-5, 1e-6)) << capacity;
      EXPECT_TRUE(at::allclose(one.x, two.x, 1e-4, 1e-6)) << capacity;
      EXPECT_TRUE(at::allclose(one.gate_up, two.gate_up, 1e-4, 1e-6)) << capacity;
      EXPECT_TRUE(at::allclose(one.down, two.down, 1e-4, 1e-6)) << capacity;
      EXPECT_TRUE(at::allclose(one.logits_weights, two.logits_weights, 1e-4, 1e-6)) << capacity;
    }
}

TEST(FakeQuantiser, floats_and_integers_are_what_they_say) {
  at::manual_seed(20);
  const at::Tensor x = at::randn({9, 32}), w = parameter({16, 32});
  FakeQuantiserOptions options;
  options.weight_bits = 4;
  FakeQuantiser quantiser(options);
  const auto product = quantiser.add("w", w);
  quantiser.set_mode(Mode::floating);
  EXPECT_TRUE(at::equal(linear(x, w, {}, product.get()), ops::linear(x, w)));
  quantiser.set_mode(Mode::evaluating);
  const at::NoGradGuard no_grad;
  const Quantised codes_w = quantise(w, Granularity::per_row, 4), codes_x = quantise(x, Granularity::per_row);
  const at::Tensor sums = at::mm(codes_x.codes.to(at::kDouble), codes_w.codes.to(at::kDouble).t());
  const at::Tensor exact = sums * codes_x.scales.to(at::kDouble) * codes_w.scales.to(at::kDouble).t();
  EXPECT_TRUE(at::allclose(linear(x, w, {}, product.get()).to(at::kDouble), exact, 1e-5, 1e-6));
  EXPECT_TRUE(at::equal(product->values(w), dequantise(codes_w.codes, codes_w.scales)));
}

TEST(FakeQuantiser, noise_is_of_its_pass_and_off_in_evaluation) {
  at::manual_seed(21);
  const at::Tensor x = at::randn({9, 32}), w = parameter({16, 32});
  FakeQuantiserOptions options;
  options.compensation = Compensation::uniform;
  options.weight_bits = 4;
  FakeQuantiser quantiser(options);
  const auto product = quantiser.add("w", w);
  const auto pass = [&](int64_t step, int64_t micro, double compensation) {
    quantiser.set_mode(Mode::training);
    quantiser.begin_step(step, compensation);
    quantiser.begin_micro(micro);
    return product->linear(x, w).detach();
  };
  const at::Tensor first = pass(3, 1, 1);
  quantiser.set_mode(Mode::evaluating);
  const at::Tensor hard = product->linear(x, w).detach();
  EXPECT_TRUE(at::equal(hard, product->linear(x, w)));
  EXPECT_FALSE(at::equal(first, hard));
  EXPECT_TRUE(at::equal(pass(3, 1, 1), first)) << "the same pass again";
  EXPECT_FALSE(at::equal(pass(3, 0, 1), first));
  EXPECT_FALSE(at::equal(pass(4, 1, 1), first));
  EXPECT_TRUE(at::equal(pass(3, 1, 0), hard)) << "annealed to hard rounding";
}

TEST(FakeQuantiser, carried_errors_make_the_mean_of_the_steps_exact) {
  at::manual_seed(22);
  const at::Tensor w = parameter({16, 32});
  FakeQuantiserOptions options;
  options.compensation = Compensation::feedback;
  options.weight_bits = 4;
  FakeQuantiser quantiser(options);
  const auto product = quantiser.add("w", w);
  quantiser.set_mode(Mode::training);
  at::Tensor sum = at::zeros({16, 32});
  constexpr int kSteps = 64;
  for (int step = 1; step <= kSteps; ++step) {
    quantiser.begin_step(step, 1);
    sum += product->values(w);
    quantiser.end_step(fine());
  }
  const at::Tensor quantum = scales_of(range_of(w, Granularity::per_row), 4);
  // The largest of a row are clipped at times; errors of the others add up to less than a step.
  const at::Tensor most = w.detach().abs().lt(6.4 * quantum);
  EXPECT_TRUE((sum / kSteps - w.detach())
                  .abs()
                  .le(1.01 * quantum / kSteps)
                  .logical_or(most.logical_not())
                  .all()
                  .item<bool>());
  quantiser.begin_step(kSteps + 1, 0);
  EXPECT_TRUE(at::equal(product->values(w), dequantise(quantise(w, Granularity::per_row, 4).codes, quantum)));
}

TEST(FakeQuantiser, running_ranges_follow_and_ignore_what_is_not_finite) {
  at::manual_seed(23);
  const at::Tensor w = parameter({4, 8});
  FakeQuantiserOptions options;
  options.per_token = false;
  options.momentum = 0.5;
  FakeQuantiser quantiser(options);
  const auto product = quantiser.add("w", w);
  const at::Tensor range = state_named(quantiser, "range.w.input");
  quantiser.set_mode(Mode::training);
  const auto step = [&](std::vector<float> largest, const at::Tensor& scale) {
    quantiser.begin_step(1, 1);
    for (const float each : largest) product->linear(at::full({2, 8}, each), w);
    quantiser.end_step(scale);
  };
  EXPECT_FALSE(quantiser.ranges_are_known());
  step({2, 4, 3}, fine());
  EXPECT_EQ(range.item<float>(), 4) << "the first step's, of all its micro-batches";
  EXPECT_TRUE(quantiser.ranges_are_known());
  step({8}, fine());
  EXPECT_EQ(range.item<float>(), 6);
  step({1, std::numeric_limits<float>::infinity()}, fine());
  step({std::nanf("")}, fine());
  step({1}, at::full({}, std::nanf("")));
  EXPECT_EQ(range.item<float>(), 6);
  quantiser.set_mode(Mode::evaluating);
  product->linear(at::full({2, 8}, 100.0f), w);
  quantiser.set_mode(Mode::training);
  step({6}, fine());
  EXPECT_EQ(range.item<float>(), 6) << "nothing is remembered of an evaluation";
}

TEST(FakeQuantiser, calibration_takes_the_largest_or_the_mean) {
  const at::Tensor w = at::ones({4, 8});
  for (const RangeRule rule : {RangeRule::minmax, RangeRule::percentile}) {
    FakeQuantiserOptions options;
    options.per_token = false;
    options.range.rule = rule;
    FakeQuantiser quantiser(options);
    const auto product = quantiser.add("w", w);
    EXPECT_EQ(quantiser.products_without_range(), std::vector<std::string>{"w.input"});
    quantiser.set_mode(Mode::observing);
    for (const float largest : {2.0f, 6.0f, 4.0f}) {
      product->linear(at::full({2, 8}, largest), w);
      quantiser.observed_pass();
    }
    EXPECT_NEAR(state_named(quantiser, "range.w.input").item<float>(), rule == RangeRule::minmax ? 6 : 4,
                1e-6);
    EXPECT_TRUE(quantiser.products_without_range().empty());
  }
  FakeQuantiser quantiser({});
  quantiser.add("w", at::full({2, 2}, std::numeric_limits<float>::infinity()));
  EXPECT_EQ(quantiser.products_without_range(), std::vector<std::string>{"w"});
}

TEST(FakeQuantiser, learned_steps_begin_with_the_least_error_and_are_restored) {
  at::manual_seed(24);
  const at::Tensor w = parameter({4, 64}), x = at::randn({10, 64});
  FakeQuantiserOptions options;
  options.per_token = false;
  options.learned = true;
  options.weight_bits = 4;
  FakeQuantiser quantiser(options);
  const auto product = quantiser.add("w", w);
  ASSERT_EQ(quantiser.steps().size(), 2u);
  const at::Tensor of_weight = state_named(quantiser, "step.w"),
                   of_input = state_named(quantiser, "step.w.input");
  EXPECT_EQ(of_weight.sizes(), (std::vector<int64_t>{4, 1}));
  quantiser.set_mode(Mode::training);
  quantiser.begin_step(1, 1);
  product->linear(x, w).sum().backward();
  EXPECT_TRUE(of_weight.grad().defined());
  EXPECT_FALSE(of_input.grad().defined()) << "there is none before a step has been seen";
  quantiser.end_step(fine());
  const RangeOptions mse{RangeRule::mse, 0, 4};
  EXPECT_TRUE(at::allclose(of_weight.exp(), scales_of(chosen_range(w, Sharing::row, mse), 4)));
  quantiser.begin_step(2, 1);
  const at::Tensor y = product->linear(x, w);
  y.sum().backward();
  EXPECT_TRUE(of_input.grad().defined());

  FakeQuantiser other(options);
  const auto other_product = other.add("w", w);
  {
    const at::NoGradGuard no_grad;
    state_named(other, "step.w").copy_(of_weight);
    state_named(other, "step.w.input").copy_(of_input);
  }
  other.restored();
  other.set_mode(Mode::evaluating);
  EXPECT_TRUE(at::equal(other_product->linear(x, w), y));
}

}  // namespace
}  // namespace moebius::quant
