#include "ops/cases/run.h"

#include <ATen/ATen.h>

namespace moebius::ops::cases {
namespace {

constexpr uint64_t kSeed = 20;

at::Tensor rounded(const Input& input, at::ScalarType dtype) {
  switch (input.kind) {
    case InputKind::index:
      return input.value;
    case InputKind::activation:
    case InputKind::typed_constant:
      return input.value.to(dtype);
    case InputKind::f32:
    case InputKind::constant:
      break;
  }
  return input.value.to(at::kFloat);
}

}  // namespace

bool is_differentiable(InputKind kind) {
  return kind == InputKind::activation || kind == InputKind::f32;
}

Example example_of(const OpCase& op_case) {
  at::manual_seed(kSeed);
  return op_case.make();
}

Tensors device_inputs(const Example& example, at::ScalarType dtype, at::Device device) {
  Tensors inputs;
  for (const Input& input : example.inputs) {
    at::Tensor tensor = rounded(input, dtype).to(device, /*non_blocking=*/false, /*copy=*/true);
    inputs.push_back(tensor.requires_grad_(is_differentiable(input.kind)));
  }
  return inputs;
}

Tensors exact_inputs(const Example& example, at::ScalarType dtype) {
  Tensors inputs;
  for (const Input& input : example.inputs) {
    at::Tensor tensor = rounded(input, dtype);
    if (input.kind != InputKind::index) tensor = tensor.to(at::kDouble);
    inputs.push_back(tensor.clone().requires_grad_(is_differentiable(input.kind)));
  }
  return inputs;
}

}  // namespace moebius::ops::cases
