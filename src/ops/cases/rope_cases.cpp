#include <ATen/ATen.h>

#include <cmath>

#include "base/concat.h"
#include "ops/cases/case.h"
#include "ops/rope.h"

namespace moebius::ops::cases {
namespace {

using kernels::QkNorm;

constexpr double kTheta = 10000.0;

// (P, d/2) angles of every position, in double precision.
at::Tensor angles(const at::Tensor& positions, int64_t head_dim, double theta) {
  const at::Tensor pairs = at::arange(head_dim / 2, at::kDouble);
  return at::outer(positions.to(at::kDouble), at::pow(theta, pairs * (-2.0 / static_cast<double>(head_dim))));
}

// RMSNorm over the last `group` dims as one, weights of as many elements.
at::Tensor normalised(const at::Tensor& heads, QkNorm norm, const at::Tensor& weight, double eps) {
  if (norm == QkNorm::none) return heads;
  const at::Tensor x = norm == QkNorm::full ? heads.flatten(1) : heads;
  return (x * (x.square().mean(-1, true) + eps).rsqrt() * weight).view(heads.sizes());
}

// Of the first r elements, twice as many as there are angles, element i turns with element i + r/2.
at::Tensor rotated(const at::Tensor& heads, const at::Tensor& turn) {
  const int64_t half = turn.size(1);
  const at::Tensor cos = turn.cos().unsqueeze(1), sin = turn.sin().unsqueeze(1);
  const std::vector<at::Tensor> parts = heads.split_with_sizes({half, half, heads.size(-1) - 2 * half}, -1);
  return at::cat({parts[0] * cos - parts[1] * sin, parts[1] * cos + parts[0] * sin, parts[2]}, -1);
}

Example rope_example(int64_t num_tokens, const RopeOptions& options) {
  const int64_t heads = options.num_heads, kv_heads = options.num_kv_heads, d = options.head_dim;
  const int64_t num_positions = std::max<int64_t>(num_tokens, 100);
  std::vector<Input> inputs{
      {"qkv", at::randn({num_tokens, (heads + 2 * kv_heads) * d}, at::kDouble) * 2},
      {"positions", at::randint(num_positions, {num_tokens}, at::kInt), InputKind::index}};
  if (options.norm != QkNorm::none) {
    const bool full = options.norm == QkNorm::full;
    inputs.push_back({"q_weight", at::randn({full ? heads * d : d}, at::kDouble) + 1});
    inputs.push_back({"k_weight", at::randn({full ? kv_heads * d : d}, at::kDouble) + 1});
  }
  const int64_t turned = options.rotary_dim > 0 ? options.rotary_dim : d;
  const at::Tensor table = rope_table(num_positions, turned, kTheta, at::kCPU);
  auto table_there = std::make_shared<at::Tensor>();
  return {
      inputs,
      [options, table, table_there](const Tensors& in) {
        if (!table_there->defined()) *table_there = table.to(in[0].device());
        const bool norm = options.norm != QkNorm::none;
        return Outputs{{"qkv_out", qk_norm_rope(in[0], norm ? in[2] : at::Tensor(),
                                                norm ? in[3] : at::Tensor(), in[1], *table_there, options)}};
      },
      [options, turned](const Tensors& in) {
        const int64_t heads = options.num_heads, kv_heads = options.num_kv_heads;
        const std::vector<at::Tensor> parts =
            in[0].unflatten(1, {-1, options.head_dim}).split_with_sizes({heads, kv_heads, kv_heads}, 1);
        const at::Tensor turn = angles(in[1], turned, kTheta);
        const bool norm = options.norm != QkNorm::none;
        const at::Tensor q = normalised(parts[0], options.norm, norm ? in[2] : at::Tensor(), options.eps);
        const at::Tensor k = normalised(parts[1], options.norm, norm ? in[3] : at::Tensor(), options.eps);
        return Outputs{{"qkv_out", at::cat({rotated(q, turn), rotated(k, turn), parts[2]}, 1).flatten(1)}};
      }};
}

Example table_example(int64_t num_positions, int64_t head_dim, double theta) {
  return {{{"positions", at::arange(num_positions, at::kInt), InputKind::index}},
          [=](const Tensors& in) {
            return Outputs{{"cos_sin", rope_table(num_positions, head_dim, theta, in[0].device())}};
          },
          [=](const Tensors& in) {
            const at::Tensor turn = angles(in[0], head_dim, theta);
            return Outputs{{"cos_sin", at::cat({turn.cos(), turn.sin()}, 1)}};
          }};
}

Example rotate_example(int64_t num_tokens, int64_t heads, int64_t dim) {
  const at::Tensor table = rope_table(100, dim, kTheta, at::kCPU);
  return {{{"x", at::randn({num_tokens, heads, dim}, at::kDouble)},
           {"positions", at::randint(100, {num_tokens}, at::kInt), InputKind::index}},
          [table](const Tensors& in) {
            return Outputs{{"y", rotate(in[0], in[1], table.to(in[0].device()))}};
          },
          [dim](const Tensors& in) {
            return Outputs{{"y", rotated(in[0], angles(in[1], dim, kTheta))}};
          }};
}

}  // namespace

void add_rope_cases(CaseList& cases) {
  struct TableRow {
    int64_t positions, head_dim;
    double theta;
  };
  for (const TableRow row : {TableRow{1, 2, 1e4}, {300, 64, 1e4}, {4096, 128, 1e6}})
    cases.push_back({.name = concat("rope_table/p", row.positions, "_h", row.head_dim),
                     .op_class = OpClass::table,
                     .work = {Work::Unit::bytes, 4.0 * static_cast<double>(row.positions * row.head_dim)},
                     .dtypes = {at::kFloat},
                     .make = [row] { return table_example(row.positions, row.head_dim, row.theta); }});

  struct Row {
    int64_t tokens, heads, kv_heads, head_dim;
    Size size = Size::small;
    int64_t rotary_dim = 0;
  };
  for (const Row row : {Row{1, 1, 1, 2},
                        {1, 4, 2, 32},
                        {37, 3, 3, 40},
                        {129, 8, 2, 64},
                        {65, 4, 1, 128},
                        {33, 4, 2, 40, Size::small, 10},
                        {33, 3, 1, 64, Size::small, 32},
                        {2048, 4, 2, 32, Size::bench},
                        {4096, 6, 2, 64, Size::bench},
                        {16384, 16, 16, 128, Size::large},
                        {16384, 32, 4, 128, Size::large},
                        {16384, 32, 8, 128, Size::large}})
    for (const auto& [norm, name] :
         {std::pair{QkNorm::none, "none"}, {QkNorm::head, "head"}, {QkNorm::full, "full"}}) {
      const double all = static_cast<double>(row.tokens * (row.heads + 2 * row.kv_heads) * row.head_dim);
      const double turned = static_cast<double>(row.tokens * (row.heads + row.kv_heads) * row.head_dim);
      const RopeOptions options{row.heads, row.kv_heads, row.head_dim, norm, 1e-6, row.rotary_dim};
      cases.push_back(
          {.name = concat("rope_", name, "/t", row.tokens, "_h", row.heads, "k", row.kv_heads, "_d",
                          row.head_dim, row.rotary_dim > 0 ? concat("_r", row.rotary_dim) : std::string()),
           .op_class = OpClass::memory,
           .work = {Work::Unit::elements, 2 * all, 2 * all + (norm == QkNorm::none ? 0 : turned)},
           .dtypes = both_dtypes(),
           .size = row.size,
           .make = [row, options] { return rope_example(row.tokens, options); }});
    }
  for (const Row row : {Row{1, 1, 0, 2}, {37, 5, 0, 8}, {65, 1, 0, 64}})
    cases.push_back(
        {.name = concat("rotate/t", row.tokens, "_h", row.heads, "_d", row.head_dim),
         .op_class = OpClass::memory,
         .work = {Work::Unit::elements, 2.0 * static_cast<double>(row.tokens * row.heads * row.head_dim),
                  2.0 * static_cast<double>(row.tokens * row.heads * row.head_dim)},
         .dtypes = both_dtypes(),
         .make = [row] { return rotate_example(row.tokens, row.heads, row.head_dim); }});
}

}  // namespace moebius::ops::cases
