#include "ops/experts.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/concat.h"
#include "base/parallel.h"
#include "ops/grouped_mm.h"
#include "ops/linear.h"
#include "ops/weight_gradients.h"

namespace moebius::ops {
namespace {

// Each token chooses top_k experts; with a capacity the later slots of an expert are dropped.
Routing make_routing(int64_t num_tokens, int64_t num_experts, int64_t top_k, int64_t capacity = -1) {
  Routing routing;
  routing.weights_TK = at::rand({num_tokens, top_k}) + 0.1;
  routing.experts_TK = at::empty({num_tokens, top_k}, at::kInt);
  auto experts = routing.experts_TK.accessor<int32_t, 2>();
  for (int64_t t = 0; t < num_tokens; ++t)  // expert 1 is never chosen
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t e = (t * 7 + k * 3 + (t * t) % 5) % num_experts;
      experts[t][k] = static_cast<int32_t>(e == 1 ? 0 : e);
    }
  routing.order_R = at::full({num_tokens * top_k}, -1, at::kInt);
  routing.inverse_R = at::full({num_tokens * top_k}, -1, at::kInt);
  routing.offsets_E1 = at::zeros({num_experts + 1}, at::kInt);
  int32_t row = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    int64_t taken = 0;
    for (int64_t slot = 0; slot < num_tokens * top_k; ++slot) {
      if (experts[slot / top_k][slot % top_k] != e || (capacity >= 0 && taken >= capacity)) continue;
      routing.order_R[row] = static_cast<int32_t>(slot);
      routing.inverse_R[slot] = row++;
      ++taken;
    }
    routing.offsets_E1[e + 1] = row;
  }
  return routing;
}

struct Inputs {
  at::Tensor x_TD, gate_up_E2FD, down_EDF, weights_TK, grad_y_TD;

  std::vector<at::Tensor> leaves() const { return {x_TD, gate_up_E2FD, down_EDF, weights_TK}; }
};

Inputs make_inputs(const Routing& routing, int64_t num_experts, int64_t width, int64_t hidden,
                   at::ScalarType dtype) {
  const int64_t num_tokens = routing.weights_TK.size(0);
  Inputs in;
  in.x_TD = at::randn({num_tokens, width}).to(dtype).requires_grad_(true);
  in.gate_up_E2FD =
      (at::randn({num_experts, 2 * hidden, width}) / std::sqrt(width)).to(dtype).requires_grad_(true);
  in.down_EDF = (at::randn({num_experts, width, hidden}) / std::sqrt(hidden)).to(dtype).requires_grad_(true);
  in.weights_TK = routing.weights_TK.clone().requires_grad_(true);
  in.grad_y_TD = at::randn({num_tokens, width}).to(dtype);
  return in;
}

// y, then the gradients of the leaves.
std::vector<at::Tensor> run(const Inputs& in, Routing routing, bool recompute) {
  routing.weights_TK = in.weights_TK;
  const at::Tensor y_TD = expert_ffn(in.x_TD, in.gate_up_E2FD, in.down_EDF, routing, recompute);
  std::vector<at::Tensor> result = torch::autograd::grad({y_TD}, in.leaves(), {in.grad_y_TD});
  result.insert(result.begin(), y_TD.detach());
  return result;
}

constexpr const char* kNames[] = {"y", "grad x", "grad gate_up", "grad down", "grad weights"};

void expect_same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << kNames[i];
}

TEST(ExpertFfn, recomputing_the_pre_activation_changes_no_bit) {
  at::manual_seed(4);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Routing routing = make_routing(50, 6, 2);
    const Inputs in = make_inputs(routing, 6, 40, 24, dtype);
    expect_same(run(in, routing, false), run(in, routing, true));
  }
}

TEST(ExpertFfn, does_not_depend_on_the_number_of_threads) {
  at::manual_seed(5);
  const Routing routing = make_routing(300, 4, 2);
  const Inputs in = make_inputs(routing, 4, 64, 48, at::kFloat);
  const int before = num_threads();
  set_num_threads(1);
  const auto one = run(in, routing, false);
  set_num_threads(3);
  const auto three = run(in, routing, false);
  set_num_threads(before);
  expect_same(one, three);
}

TEST(ExpertFfn, walks_a_retained_graph_twice_with_the_same_result) {
  at::manual_seed(6);
  Routing routing = make_routing(20, 4, 2);
  const Inputs in = make_inputs(routing, 4, 16, 8, at::kFloat);
  routing.weights_TK = in.weights_TK;
  const at::Tensor y_TD = expert_ffn(in.x_TD, in.gate_up_E2FD, in.down_EDF, routing);
  const auto first = torch::autograd::grad({y_TD}, in.leaves(), {in.grad_y_TD}, /*retain_graph=*/true);
  const auto second = torch::autograd::grad({y_TD}, in.leaves(), {in.grad_y_TD});
  for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], second[i])) << kNames[i + 1];
}

TEST(ExpertFfn, gives_the_same_output_without_gradients) {
  at::manual_seed(7);
  const Routing routing = make_routing(20, 4, 2, 5);
  const Inputs in = make_inputs(routing, 4, 16, 8, at::kBFloat16);
  const at::Tensor with = expert_ffn(in.x_TD, in.gate_up_E2FD, in.down_EDF, routing);
  const at::NoGradGuard guard;
  const at::Tensor without = expert_ffn(in.x_TD, in.gate_up_E2FD, in.down_EDF, routing);
  EXPECT_TRUE(at::equal(with, without));
  EXPECT_FALSE(without.requires_grad());
}

TEST(ExpertFfn, computes_only_the_gradients_asked_for) {
  at::manual_seed(8);
  const Routing routing = make_routing(20, 4, 2);
  const Inputs in = make_inputs(routing, 4, 16, 8, at::kFloat);
  const auto all = run(in, routing, false);
  const at::Tensor y_TD = expert_ffn(in.x_TD.detach(), in.gate_up_E2FD.detach(), in.down_EDF, routing);
  const auto down = torch::autograd::grad({y_TD}, {in.down_EDF}, {in.grad_y_TD});
  EXPECT_TRUE(at::equal(all[3], down[0]));
}

TEST(ExpertFfn, gives_zero_for_tokens_whose_slots_are_all_dropped) {
  at::manual_seed(9);
  const Routing routing = make_routing(12, 3, 1, 0);
  const Inputs in = make_inputs(routing, 3, 8, 8, at::kFloat);
  for (const at::Tensor& tensor : run(in, routing, false))
    EXPECT_TRUE(at::equal(tensor, at::zeros_like(tensor)));
}

TEST(Linear, keeps_leading_dims) {
  at::manual_seed(10);
  const at::Tensor x = at::randn({3, 17, 7}).requires_grad_(true), w = at::randn({5, 7});
  const at::Tensor y = ops::linear(x, w);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{3, 17, 5}));
  EXPECT_TRUE(at::equal(y.view({51, 5}), ops::linear(x.view({51, 7}), w)));
  EXPECT_EQ(torch::autograd::grad({y.sum()}, {x})[0].sizes(), x.sizes());
}

TEST(Linear, takes_inputs_that_are_not_contiguous) {
  at::manual_seed(11);
  const at::Tensor x = at::randn({6, 8}).t(), w = at::randn({6, 5}).t();
  EXPECT_TRUE(at::equal(ops::linear(x, w), ops::linear(x.contiguous(), w.contiguous())));
}

// What CUDA uses, held against our own products: widths of which 16 bytes are no multiple are filled up.
TEST(GroupedProducts, of_the_library_take_odd_widths) {
  at::manual_seed(5);
  const at::Tensor offsets_G1 = at::tensor({0, 3, 3, 11, 16}, at::kInt);
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{20, 32}, {24, 13}, {7, 9}, {16, 8}}) {
    SCOPED_TRACE(concat("n ", n, ", k ", k));
    const auto draw = [](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); };
    const at::Tensor a_RK = draw({16, k}), a_RN = draw({16, n}), w_GNK = draw({4, n, k});
    const auto expect_near = [](const at::Tensor& have, const at::Tensor& want) {
      ASSERT_EQ(have.sizes(), want.sizes());
      EXPECT_TRUE(have.is_contiguous());
      EXPECT_TRUE(at::allclose(have.to(at::kFloat), want.to(at::kFloat), 2e-2, 2e-2));
    };
    expect_near(library_grouped_mm(kernels::GroupedGemmKind::forward, a_RK, w_GNK, offsets_G1),
                grouped_mm({a_RK, {}}, w_GNK, offsets_G1));
    expect_near(library_grouped_mm(kernels::GroupedGemmKind::input_grad, a_RN, w_GNK, offsets_G1),
                grouped_mm_input_grad({a_RN, {}}, w_GNK, offsets_G1));
    expect_near(library_grouped_mm(kernels::GroupedGemmKind::weight_grad, a_RN, a_RK, offsets_G1),
                grouped_mm_weight_grad({a_RN, {}}, {a_RK, {}}, offsets_G1));
  }
}

// Gradients of weights that are left for later are the same, bit for bit, and hooks come then.
TEST(WeightGradients, come_when_they_are_asked_for) {
  class Count final : public torch::autograd::PostAccumulateGradHook {
   public:
    explicit Count(int& count) : count_(count) {}
    void operator()(const at::Tensor&) override { ++count_; }

   private:
    int& count_;
  };
  at::manual_seed(3);
  const Routing routing = make_routing(9, 3, 2);
  Inputs in = make_inputs(routing, 3, 8, 6, at::kFloat);
  at::Tensor weight = at::randn({8, 8}).requires_grad_(true);
  const std::vector<at::Tensor> weights{in.gate_up_E2FD, in.down_EDF, weight};
  std::vector<at::Tensor> expected;
  for (WeightGradients later; const bool waits : {false, true}) {
    for (const at::Tensor& leaf : in.leaves()) leaf.mutable_grad().reset();
    weight.mutable_grad().reset();
    Routing own = routing;
    own.weights_TK = in.weights_TK;
    at::Tensor y_TD;
    {
      const WeightGradients::Collect collect(waits ? &later : nullptr);
      // The weight is used twice.
      y_TD = ops::linear(expert_ffn(ops::linear(in.x_TD, weight), in.gate_up_E2FD, in.down_EDF, own), weight);
    }
    EXPECT_EQ(WeightGradients::current(), nullptr);
    torch::autograd::backward({y_TD}, {in.grad_y_TD});
    if (!waits) {
      for (const at::Tensor& each : weights) expected.push_back(each.grad().clone());
      expected.push_back(in.x_TD.grad().clone());
      expected.push_back(in.weights_TK.grad().clone());
      continue;
    }
    int count = 0;
    for (const at::Tensor& each : weights) {
      EXPECT_FALSE(each.grad().defined());
      EXPECT_TRUE(later.has(each));
      torch::autograd::impl::set_post_acc_grad_hooks(each, std::make_unique<Count>(count));
    }
    EXPECT_TRUE(in.x_TD.grad().equal(expected[3]));
    EXPECT_TRUE(in.weights_TK.grad().equal(expected[4]));
    later.finish();
    EXPECT_EQ(count, 3);
    for (size_t i = 0; i < weights.size(); ++i) EXPECT_TRUE(weights[i].grad().equal(expected[i])) << i;
    EXPECT_FALSE(later.has(weight));
  }
}

}  // namespace
}  // namespace moebius::ops
