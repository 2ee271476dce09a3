#include <ATen/ATen.h>

#include <cmath>

#include "base/concat.h"
#include "ops/cases/case.h"
#include "ops/grouped_mm.h"
#include "ops/linear.h"

namespace moebius::ops::cases {
namespace {

Example linear_example(int64_t rows, int64_t n, int64_t k) {
  return {{{"x", at::randn({rows, k}, at::kDouble)},
           {"weight", at::randn({n, k}, at::kDouble) / std::sqrt(static_cast<double>(k))}},
          [](const Tensors& in) {
            return Outputs{{"y", ops::linear(in[0], in[1])}};
          },
          [](const Tensors& in) {
            return Outputs{{"y", at::mm(in[0], in[1].t())}};
          }};
}

// Rows of each group; `tail` rows after the last group belong to none.
struct Groups {
  std::string name;
  std::vector<int64_t> rows;
  int64_t tail, n, k;
  int64_t divisor;  // 0: rows in place; otherwise gathered through an index of slots, `divisor` per row
  Size size = Size::small;
  bool cuda = true;

  int64_t num_rows() const {
    int64_t all = tail;
    for (const int64_t count : rows) all += count;
    return all;
  }
};

at::Tensor offsets_of(const std::vector<int64_t>& rows) {
  std::vector<int32_t> offsets{0};
  for (const int64_t count : rows) offsets.push_back(offsets.back() + static_cast<int32_t>(count));
  return at::tensor(offsets, at::kInt);
}

// One product after the other, group by group. in: a (R, K), b (R, N), weight (G, N, K), offsets.
Outputs plain_products(const at::Tensor& a, const at::Tensor& b, const Tensors& in) {
  const at::Tensor &weight = in[2], &offsets = in[3];
  std::vector<at::Tensor> y, input_grad, weight_grad;
  for (int64_t g = 0; g < weight.size(0); ++g) {
    const int64_t begin = offsets[g].item<int32_t>(), count = offsets[g + 1].item<int32_t>() - begin;
    y.push_back(at::mm(a.narrow(0, begin, count), weight[g].t()));
    input_grad.push_back(at::mm(b.narrow(0, begin, count), weight[g]));
    weight_grad.push_back(at::mm(b.narrow(0, begin, count).t(), a.narrow(0, begin, count)));
  }
  return {{"y", at::cat(y)}, {"input_grad", at::cat(input_grad)}, {"weight_grad", at::stack(weight_grad)}};
}

// The three products of a layer of experts. Rows past the last offset are undefined and not compared.
Example grouped_example(const Groups& groups) {
  const int64_t rows = groups.num_rows(), used = rows - groups.tail, divisor = groups.divisor;
  const auto num_groups = static_cast<int64_t>(groups.rows.size());
  const int64_t source_rows = divisor == 0 ? rows : (rows + divisor - 1) / divisor;
  at::Tensor index = divisor == 0 ? at::arange(rows, at::kInt) : at::randperm(rows, at::kInt);
  if (groups.tail > 0) index.narrow(0, used, groups.tail).fill_(-1);
  const auto kind = InputKind::typed_constant;
  return {{{"a", at::randn({source_rows, groups.k}, at::kDouble), kind},
           {"b", at::randn({rows, groups.n}, at::kDouble), kind},
           {"weight", at::randn({num_groups, groups.n, groups.k}, at::kDouble) / 8, kind},
           {"offsets", offsets_of(groups.rows), InputKind::index},
           {"index", index, InputKind::index}},
          [=](const Tensors& in) {
            const RowOperand a = divisor == 0 ? RowOperand{in[0], {}, 1} : RowOperand{in[0], in[4], divisor};
            const RowOperand b{in[1], {}, 1};
            return Outputs{{"y", grouped_mm(a, in[2], in[3]).narrow(0, 0, used)},
                           {"input_grad", grouped_mm_input_grad(b, in[2], in[3]).narrow(0, 0, used)},
                           {"weight_grad", grouped_mm_weight_grad(b, a, in[3])}};
          },
          [=](const Tensors& in) {
            const at::Tensor chosen = in[4].narrow(0, 0, used).to(at::kLong);
            const at::Tensor source =
                divisor == 0 ? chosen : chosen.div(at::Scalar(divisor), /*rounding_mode=*/"floor");
            return plain_products(in[0].index_select(0, source), in[1], in);
          }};
}

}  // namespace

void add_product_cases(CaseList& cases) {
  struct Row {
    int64_t rows, n, k;
    Size size = Size::small;
  };
  for (const Row row : {Row{1, 1, 1},
                        {1, 33, 70},
                        {51, 5, 3},
                        {129, 72, 40},
                        {260, 100, 257},
                        {0, 16, 8},
                        {2048, 384, 128, Size::bench},
                        {4096, 1152, 384, Size::bench},
                        {4096, 4096, 384, Size::bench},
                        {64, 4096, 4096, Size::bench},
                        {4096, 4096, 4096, Size::large},
                        {16384, 6144, 2048, Size::large}}) {
    const double forward = 2.0 * static_cast<double>(row.rows * row.n * row.k);
    cases.push_back({.name = concat("linear/r", row.rows, "_n", row.n, "_k", row.k),
                     .op_class = OpClass::product,
                     .work = {Work::Unit::flops, forward, 2 * forward},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return linear_example(row.rows, row.n, row.k); }});
  }

  const auto even = [](int64_t groups, int64_t rows) {
    return std::vector<int64_t>(static_cast<size_t>(groups), rows);
  };
  const std::vector<Groups> all_groups{
      {"one_row", {1}, 0, 8, 8, 0},
      {"one_group", {65}, 0, 40, 24, 0},
      {"empty_groups", {0, 17, 0, 5, 0}, 0, 24, 16, 0},
      {"all_in_one", {0, 0, 90}, 0, 32, 64, 0},
      {"unused_tail", {20, 3, 30}, 11, 48, 32, 0},
      {"odd_widths", {7, 0, 22, 1}, 5, 13, 11, 0, Size::small, false},
      {"gathered_top1", {7, 0, 22, 1}, 5, 13, 11, 1, Size::small, false},
      {"gathered_top3", {40, 2, 30}, 9, 33, 70, 3, Size::small, false},
      {"e512_of_2_rows", even(512, 2), 0, 16, 8, 0},
      {"e8_r4096_n512_k128", even(8, 512), 0, 512, 128, 0, Size::bench},
      {"e8_r4096_n1280_k384", even(8, 512), 0, 1280, 384, 0, Size::bench},
      {"e8_r4096_n384_k640", even(8, 512), 0, 384, 640, 0, Size::bench},
      {"e128_r131072_n1536_k2048", even(128, 1024), 0, 1536, 2048, 0, Size::large},
  };
  for (const Groups& groups : all_groups) {
    const double one = 2.0 * static_cast<double>((groups.num_rows() - groups.tail) * groups.n * groups.k);
    cases.push_back({.name = "grouped_mm/" + groups.name,
                     .op_class = OpClass::product,
                     .work = {Work::Unit::flops, 3 * one},
                     .dtypes = both_dtypes(),
                     .size = groups.size,
                     .cuda = groups.cuda,
                     .make = [groups] { return grouped_example(groups); }});
  }
}

}  // namespace moebius::ops::cases
