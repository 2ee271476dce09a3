#include <ATen/ATen.h>

#include "base/concat.h"
#include "ops/cases/case.h"
#include "ops/norm.h"

namespace moebius::ops::cases {
namespace {

constexpr double kEps = 1e-5;

at::Tensor normalised(const at::Tensor& x, const at::Tensor& weight) {
  return x / (x.square().mean(-1, true) + kEps).sqrt() * weight;
}

Example rms_norm_example(int64_t rows, int64_t width) {
  return {{{"x", at::randn({rows, width}, at::kDouble) * 3}, {"weight", at::randn({width}, at::kDouble) + 1}},
          [](const Tensors& in) {
            return Outputs{{"y", rms_norm(in[0], in[1], kEps)}};
          },
          [](const Tensors& in) {
            return Outputs{{"y", normalised(in[0], in[1])}};
          }};
}

Example add_rms_norm_example(int64_t rows, int64_t width) {
  return {{{"x", at::randn({rows, width}, at::kDouble)},
           {"residual", at::randn({rows, width}, at::kDouble) * 3},
           {"weight", at::randn({width}, at::kDouble) + 1}},
          [](const Tensors& in) {
            auto [sum, y] = add_rms_norm(in[0], in[1], in[2], kEps);
            return Outputs{{"sum", sum}, {"y", y}};
          },
          [](const Tensors& in) {
            const at::Tensor sum = in[0] + in[1];
            return Outputs{{"sum", sum}, {"y", normalised(sum, in[2])}};
          }};
}

}  // namespace

void add_norm_cases(CaseList& cases) {
  struct Row {
    int64_t rows, width;
    Size size = Size::small;
  };
  for (const Row row : {Row{1, 3},
                        {1, 64},
                        {0, 32},
                        {33, 40},
                        {257, 129},
                        {5, 2048},
                        {2048, 128, Size::bench},
                        {4096, 384, Size::bench},
                        {16384, 2048, Size::large},
                        {16384, 4096, Size::large}}) {
    const double count = static_cast<double>(row.rows * row.width);
    const std::string size = concat("t", row.rows, "_d", row.width);
    cases.push_back({.name = "rms_norm/" + size,
                     .op_class = OpClass::memory,
                     .work = {Work::Unit::elements, 2 * count, 3 * count},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return rms_norm_example(row.rows, row.width); }});
    cases.push_back({.name = "add_rms_norm/" + size,
                     .op_class = OpClass::memory,
                     .work = {Work::Unit::elements, 4 * count, 4 * count},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return add_rms_norm_example(row.rows, row.width); }});
  }
}

}  // namespace moebius::ops::cases
