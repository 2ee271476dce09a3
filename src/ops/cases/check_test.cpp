// The checks themselves: each kind of mistake of an op is found and named.
#include "ops/cases/check.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moebius::ops::cases {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using Body = std::function<Outputs(const Tensors&)>;

Outputs square_and_rank(const Tensors& in) {
  return {{"square", in[0] * in[0]}, {"rank", at::argsort(in[0].detach(), int64_t{1}), true}};
}

OpCase case_of(const Body& op, const Body& reference = square_and_rank) {
  OpCase op_case{.name = "made_up/3x4", .op_class = OpClass::memory, .work = {}, .dtypes = both_dtypes()};
  op_case.make = [=] { return Example{{{"x", at::randn({3, 4}, at::kDouble)}}, op, reference}; };
  return op_case;
}

CheckResult check(const Body& op) {
  return check_case(case_of(op), at::kFloat, at::kCPU);
}

TEST(CheckCase, passes_a_correct_op) {
  const CheckResult result = check(square_and_rank);
  EXPECT_THAT(result.problems, IsEmpty());
  EXPECT_GT(result.error, 0);
  EXPECT_LT(result.error, result.tolerance);
}

TEST(CheckCase, finds_one_wrong_element_and_says_where) {
  const CheckResult result = check([](const Tensors& in) {
    Outputs outputs = square_and_rank(in);
    at::Tensor change = at::zeros({3, 4});
    change[1][2] = 0.5;
    outputs[0].value = outputs[0].value + change;
    return outputs;
  });
  EXPECT_THAT(result.problems, ElementsAre(AllOf(HasSubstr("square: error "), HasSubstr("at [1, 2]: "))));
  EXPECT_EQ(result.where, "square");
}

TEST(CheckCase, finds_one_wrong_index_and_prints_both) {
  const CheckResult result = check([](const Tensors& in) {
    Outputs outputs = square_and_rank(in);
    outputs[1].value[2][1] = 7;
    return outputs;
  });
  EXPECT_THAT(result.problems, ElementsAre(HasSubstr("rank differs first at [2, 1]: 7, reference ")));
}

TEST(CheckCase, finds_a_value_that_is_not_a_number) {
  const CheckResult result = check([](const Tensors& in) {
    Outputs outputs = square_and_rank(in);
    outputs[0].value = outputs[0].value / at::ones({3, 4}).triu();
    return outputs;
  });
  EXPECT_FALSE(result.passed());
}

TEST(CheckCase, finds_a_wrong_gradient) {
  const CheckResult result = check([](const Tensors& in) {
    Outputs outputs = square_and_rank(in);
    outputs[0].value = in[0] * in[0].detach();  // half of it is lost
    return outputs;
  });
  EXPECT_THAT(result.problems, ElementsAre(HasSubstr("gradient of x: error 0.5")));
}

TEST(CheckCase, finds_a_missing_gradient) {
  const CheckResult result = check([](const Tensors& in) {
    Outputs outputs = square_and_rank(in);
    outputs[0].value = outputs[0].value.detach();
    return outputs;
  });
  EXPECT_THAT(result.problems, ElementsAre("square has no gradient, unlike the reference",
                                           "gradient of x is missing, unlike the reference's"));
}

TEST(CheckCase, finds_a_wrong_shape) {
  const CheckResult result = check([](const Tensors& in) {
    Outputs outputs = square_and_rank(in);
    outputs[1].value = outputs[1].value.t();
    return outputs;
  });
  EXPECT_THAT(result.problems, ElementsAre("rank has shape [4, 3], the reference [3, 4]"));
}

TEST(CheckReference, finds_a_reference_whose_gradient_is_not_that_of_its_value) {
  EXPECT_TRUE(check_reference(case_of(square_and_rank)).passed());
  const auto wrong = [](const Tensors& in) { return Outputs{{"square", in[0] * in[0].detach()}}; };
  EXPECT_THAT(check_reference(case_of(wrong, wrong)).problems, ElementsAre(HasSubstr("gradient of x")));
}

TEST(NormalisedError, is_relative_to_the_reference) {
  EXPECT_DOUBLE_EQ(normalised_error(at::full({4}, 1.5), at::ones({4}, at::kDouble)), 0.5);
  EXPECT_DOUBLE_EQ(normalised_error(at::zeros({4}), at::zeros({4}, at::kDouble)), 0.0);
  EXPECT_DOUBLE_EQ(normalised_error(at::empty({0}), at::empty({0}, at::kDouble)), 0.0);
}

}  // namespace
}  // namespace moebius::ops::cases
