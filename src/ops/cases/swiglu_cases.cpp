#include <ATen/ATen.h>

#include "base/concat.h"
#include "ops/cases/case.h"
#include "ops/swiglu.h"

namespace moebius::ops::cases {
namespace {

Example swiglu_example(int64_t rows, int64_t width) {
  return {{{"gate_up", at::randn({rows, 2 * width}, at::kDouble) * 2}},
          [](const Tensors& in) {
            return Outputs{{"y", swiglu(in[0])}};
          },
          [](const Tensors& in) {
            const at::Tensor pairs = in[0].unflatten(1, {-1, 2});
            const at::Tensor gate = pairs.select(2, 0), up = pairs.select(2, 1);
            return Outputs{{"y", gate / (1 + (-gate).exp()) * up}};
          }};
}

}  // namespace

void add_swiglu_cases(CaseList& cases) {
  struct Row {
    int64_t rows, width;
    Size size = Size::small;
  };
  for (const Row row : {Row{1, 1},
                        {1, 96},
                        {33, 41},
                        {129, 96},
                        {2048, 256, Size::bench},
                        {4096, 640, Size::bench},
                        {32768, 1024, Size::large},
                        {32768, 14336, Size::large}}) {
    const double count = static_cast<double>(row.rows * row.width);
    cases.push_back({.name = concat("swiglu/r", row.rows, "_f", row.width),
                     .op_class = OpClass::memory,
                     .work = {Work::Unit::elements, 3 * count, 5 * count},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return swiglu_example(row.rows, row.width); }});
  }
}

}  // namespace moebius::ops::cases
