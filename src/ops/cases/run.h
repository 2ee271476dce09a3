// Inputs of a case as tensors of a dtype and device. Used by check and timing.
#pragma once

#include <c10/core/Device.h>

#include "ops/cases/case.h"

namespace moebius::ops::cases {

bool is_differentiable(InputKind kind);

// The case's inputs, from the same seed every time.
Example example_of(const OpCase& op_case);

// Rounded to their dtype, on the device, with requires_grad where differentiable.
Tensors device_inputs(const Example& example, at::ScalarType dtype, at::Device device);

// The same rounded values in double precision on the CPU.
Tensors exact_inputs(const Example& example, at::ScalarType dtype);

}  // namespace moebius::ops::cases
