// The registry of op cases. A case is one op at one size: its inputs, the op under test and a plain reference
// in double precision. The same case is checked by the tests (cases/check.h), on every device there is, and
// timed by `moebius bench` (cases/timing.h). What counts as close enough stands in one table
// (cases/tolerance.h), never in a case.
//
// To add a case, add a row to the file of its op (cases/<op>_cases.cpp); a new op gets a function in the list
// of case.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ops/cases/tolerance.h"

namespace moebius::ops::cases {

using Tensors = std::vector<at::Tensor>;

enum class InputKind : uint8_t {
  activation,      // in the dtype of the run; differentiable
  f32,             // fp32 whatever the dtype of the run; differentiable
  constant,        // fp32 whatever the dtype of the run; no gradient
  typed_constant,  // in the dtype of the run; no gradient
  index,           // integers, as they are
};

struct Input {
  std::string name;
  at::Tensor value;  // double precision (integers for an index), on the CPU
  InputKind kind = InputKind::activation;
};

struct Output {
  std::string name;
  at::Tensor value;    // of the op: any float dtype, any device. Of the reference: double, on the CPU
  bool exact = false;  // equal in every element, not just close
};

using Outputs = std::vector<Output>;

// Inputs of a case and what is done with them. `op` gets them rounded to their dtype on its device and may
// change them (an optimizer does); `reference` gets the same rounded values in double precision on the CPU.
// Both return the same outputs in the same order; an output of the reference that depends on a differentiable
// input is differentiable in the op too.
struct Example {
  std::vector<Input> inputs;
  std::function<Outputs(const Tensors&)> op;
  std::function<Outputs(const Tensors&)> reference;
};

// What one call does, for rates: floating-point operations, or the memory it must read and write at least.
struct Work {
  enum class Unit : uint8_t {
    flops,
    elements,  // memory, in elements of the dtype of the run
    bytes,     // memory, in bytes
  };
  Unit unit = Unit::elements;
  double forward = 0;
  double backward = 0;  // 0 when the op has no backward pass

  bool is_memory() const { return unit != Unit::flops; }
};

enum class Size : uint8_t {
  small,  // checked by the tests
  bench,  // too large for the tests; timed, and checked on demand
  large,  // the shapes of large models, for a GPU
};

struct OpCase {
  std::string name;  // "<op>/<size>"
  OpClass op_class;
  Work work;
  std::vector<at::ScalarType> dtypes;
  Size size = Size::small;
  bool cuda = true;  // false: the op does not take this size on a GPU
  // Draws from libtorch's default generator; whoever calls it seeds that.
  std::function<Example()> make = {};
};

using CaseList = std::vector<OpCase>;

// All cases, in a fixed order.
const CaseList& all_cases();

// fp32 and bf16, the dtypes of most ops.
std::vector<at::ScalarType> both_dtypes();

// One function per op, each in its own file.
void add_attention_cases(CaseList& cases);
void add_expert_cases(CaseList& cases);
void add_int8_cases(CaseList& cases);
void add_loss_cases(CaseList& cases);
void add_norm_cases(CaseList& cases);
void add_optimizer_cases(CaseList& cases);
void add_product_cases(CaseList& cases);
void add_rope_cases(CaseList& cases);
void add_route_cases(CaseList& cases);
void add_swiglu_cases(CaseList& cases);

}  // namespace moebius::ops::cases
