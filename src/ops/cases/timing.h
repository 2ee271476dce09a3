// Timing a case, for `moebius bench`.
#pragma once

#include <c10/core/Device.h>

#include "ops/cases/case.h"

namespace moebius::ops::cases {

struct Timing {
  double forward_ms = 0;  // without gradients
  double total_ms = 0;    // forward and backward; the same as forward_ms when the op has no backward pass
  bool has_backward = false;
  int calls = 0;  // of each of the two, in all
};

// Medians of `repeats` measurements, after a warm-up. Calls shorter than a millisecond are measured in groups
// of as many as take one; on a GPU each measurement begins and ends with a synchronisation.
Timing time_case(const OpCase& op_case, at::ScalarType dtype, at::Device device, int repeats);

// Rate of forward and backward together, in units per second (floating-point operations, or bytes).
double rate(const Work& work, at::ScalarType dtype, double total_ms);

}  // namespace moebius::ops::cases
