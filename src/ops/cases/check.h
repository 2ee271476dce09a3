// Checking a case: the op against the reference, and the reference's gradients against finite differences.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "ops/cases/case.h"

namespace moebius::ops::cases {

struct CheckResult {
  double error = 0;                   // largest over outputs and gradients
  std::string where;                  // which one has it
  double tolerance = 0;               // from the table
  std::vector<std::string> problems;  // empty: passed. Each names output or gradient, coordinate and values

  bool passed() const { return problems.empty(); }
};

// Runs the op on `device` in `dtype`, forward and backward (random gradients for every differentiable
// output), and compares everything with the reference. Exact outputs are compared element by element. Changes
// the seed of libtorch's generator.
CheckResult check_case(const OpCase& op_case, at::ScalarType dtype, at::Device device);

// The reference alone: its gradients by autograd, along random directions, against central differences in
// double precision.
CheckResult check_reference(const OpCase& op_case);

// Norm of (got - want) over norm of want; infinite when shapes differ or got is not finite where want is.
double normalised_error(const at::Tensor& got, const at::Tensor& want);

}  // namespace moebius::ops::cases
