// The one table of tolerances: how far an op's results may lie from the double-precision reference.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace moebius::ops::cases {

enum class OpClass : uint8_t {
  memory,            // a few operations per element: norm, rope, activation
  table,             // values computed in double and rounded once
  product,           // sums of many products
  chain,             // products of rounded intermediate results: attention, routed experts
  layer,             // several such, one after the other
  loss,              // exponentials over a vocabulary
  reduction,         // fp32 sums of values of any dtype
  routing,           // exponentials over the experts
  optimizer,         // one step of the optimizer
  coded,             // values in eight bits
  trained_in_codes,  // integer products against the floats that were rounded for them, and their gradients
  rounded,           // integer products of intermediate results that are rounded to eight bits in between
};

// Largest allowed error: norm of (result - reference) over norm of the reference, each output and each
// gradient by itself.
double tolerance(OpClass op_class, at::ScalarType dtype);

// The same for the reference's own gradients against central differences of the reference.
double finite_difference_tolerance();

}  // namespace moebius::ops::cases
