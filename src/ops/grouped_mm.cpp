#include "ops/grouped_mm.h"

#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using kernels::GroupedGemmArgs;
using kernels::GroupedGemmKind;

GroupedGemmArgs arguments(GroupedGemmKind kind, const RowOperand& a, const at::Tensor& offsets_G1) {
  GroupedGemmArgs args{};
  args.kind = kind;
  args.a = a.tensor.const_data_ptr();
  args.a_index = a.index_R.defined() ? a.index_R.const_data_ptr<int32_t>() : nullptr;
  args.index_divisor = a.divisor;
  args.offsets = offsets_G1.const_data_ptr<int32_t>();
  args.num_groups = offsets_G1.size(0) - 1;
  args.num_rows = a.num_rows();
  args.dtype = args.out_dtype = kernel_dtype(a.tensor);
  return args;
}

void run_on_cpu(const GroupedGemmArgs& args, const at::Tensor& out) {
  kernel_table(out.device()).grouped_gemm(args, current_stream(out.device()));
}

void check_operand(const RowOperand& a, int64_t width, const at::Tensor& offsets_G1) {
  MOEBIUS_CHECK_EQ(a.tensor.dim(), 2);
  MOEBIUS_CHECK_EQ(a.tensor.size(1), width);
  MOEBIUS_CHECK(a.tensor.is_contiguous() && offsets_G1.is_contiguous());
  MOEBIUS_CHECK(offsets_G1.scalar_type() == at::kInt);
  MOEBIUS_CHECK(!a.index_R.defined() || (a.index_R.scalar_type() == at::kInt && a.index_R.is_contiguous()));
}

// The ends of the groups, as libtorch's operator wants them.
at::Tensor group_ends(const at::Tensor& offsets_G1) {
  return offsets_G1.narrow(0, 1, offsets_G1.size(0) - 1);
}

// In 2-byte types libtorch's operator wants rows of whole 16 bytes: the last dim, and with `rows` the one
// before it, filled up with zeros.
at::Tensor filled_up(const at::Tensor& tensor, bool rows) {
  if (tensor.element_size() != 2) return tensor;
  const auto missing = [&](int64_t dim) { return (8 - tensor.size(dim) % 8) % 8; };
  const int64_t last = missing(-1), before = rows ? missing(-2) : 0;
  if (last == 0 && before == 0) return tensor;
  return at::constant_pad_nd(tensor, {0, last, 0, before});
}

// The first `rows` x `columns` of the last two dims (all rows when -1).
at::Tensor cut_down(const at::Tensor& tensor, int64_t rows, int64_t columns) {
  at::Tensor cut = tensor.narrow(-1, 0, columns);
  if (rows >= 0) cut = cut.narrow(-2, 0, rows);
  return cut.contiguous();
}

const at::Tensor& gathered(const RowOperand& operand) {
  MOEBIUS_CHECK(!operand.index_R.defined(), "rows must be gathered before a product on ",
                operand.tensor.device());
  return operand.tensor;
}

}  // namespace

at::Tensor library_grouped_mm(GroupedGemmKind kind, const at::Tensor& a, const at::Tensor& b,
                              const at::Tensor& offsets_G1) {
  const at::Tensor ends_G = group_ends(offsets_G1);
  switch (kind) {
    case GroupedGemmKind::forward:
      return cut_down(at::_grouped_mm(filled_up(a, false), filled_up(b, true).transpose(1, 2), ends_G), -1,
                      b.size(1));
    case GroupedGemmKind::input_grad:
      return cut_down(at::_grouped_mm(filled_up(a, false), filled_up(b, true), ends_G), -1, b.size(2));
    case GroupedGemmKind::weight_grad:
      break;
  }
  return cut_down(at::_grouped_mm(filled_up(a, false).t(), filled_up(b, false), ends_G), a.size(1),
                  b.size(1));
}

RowOperand routed_rows(const at::Tensor& x_TD, const Routing& routing) {
  const int64_t top_k = routing.weights_TK.size(1);
  if (x_TD.is_cpu()) return {x_TD, routing.order_R, top_k};
  at::Tensor rows_RD = at::empty({routing.order_R.size(0), x_TD.size(1)}, x_TD.options());
  kernels::GatherRowsArgs args{};
  args.src = x_TD.const_data_ptr();
  args.order = routing.order_R.const_data_ptr<int32_t>();
  args.rows = rows_RD.mutable_data_ptr();
  args.num_rows = rows_RD.size(0);
  args.width = x_TD.size(1);
  args.top_k = top_k;
  args.dtype = kernel_dtype(x_TD);
  kernel_table(x_TD.device()).gather_rows(args, current_stream(x_TD.device()));
  return {rows_RD, {}, 1};
}

at::Tensor grouped_mm(const RowOperand& a_RK, const at::Tensor& w_GNK, const at::Tensor& offsets_G1) {
  check_operand(a_RK, w_GNK.size(2), offsets_G1);
  MOEBIUS_CHECK_EQ(w_GNK.size(0), offsets_G1.size(0) - 1);
  if (!a_RK.tensor.is_cpu())
    return library_grouped_mm(GroupedGemmKind::forward, gathered(a_RK), w_GNK, offsets_G1);
  MOEBIUS_CHECK(w_GNK.is_contiguous() && w_GNK.scalar_type() == a_RK.tensor.scalar_type());
  at::Tensor out_RN = at::empty({a_RK.num_rows(), w_GNK.size(1)}, a_RK.tensor.options());
  GroupedGemmArgs args = arguments(GroupedGemmKind::forward, a_RK, offsets_G1);
  args.b = w_GNK.const_data_ptr();
  args.out = out_RN.mutable_data_ptr();
  args.n = w_GNK.size(1);
  args.k = w_GNK.size(2);
  run_on_cpu(args, out_RN);
  return out_RN;
}

at::Tensor grouped_mm_input_grad(const RowOperand& a_RN, const at::Tensor& w_GNK,
                                 const at::Tensor& offsets_G1) {
  check_operand(a_RN, w_GNK.size(1), offsets_G1);
  MOEBIUS_CHECK_EQ(w_GNK.size(0), offsets_G1.size(0) - 1);
  if (!a_RN.tensor.is_cpu())
    return library_grouped_mm(GroupedGemmKind::input_grad, gathered(a_RN), w_GNK, offsets_G1);
  MOEBIUS_CHECK(w_GNK.is_contiguous() && w_GNK.scalar_type() == a_RN.tensor.scalar_type());
  at::Tensor out_RK = at::empty({a_RN.num_rows(), w_GNK.size(2)}, a_RN.tensor.options());
  GroupedGemmArgs args = arguments(GroupedGemmKind::input_grad, a_RN, offsets_G1);
  args.b = w_GNK.const_data_ptr();
  args.out = out_RK.mutable_data_ptr();
  args.n = w_GNK.size(1);
  args.k = w_GNK.size(2);
  run_on_cpu(args, out_RK);
  return out_RK;
}

at::Tensor grouped_mm_weight_grad(const RowOperand& a_RN, const RowOperand& b_RK,
                                  const at::Tensor& offsets_G1) {
  check_operand(a_RN, a_RN.tensor.size(1), offsets_G1);
  check_operand(b_RK, b_RK.tensor.size(1), offsets_G1);
  MOEBIUS_CHECK_EQ(a_RN.num_rows(), b_RK.num_rows());
  if (!a_RN.tensor.is_cpu())
    return library_grouped_mm(GroupedGemmKind::weight_grad, gathered(a_RN), gathered(b_RK), offsets_G1);
  MOEBIUS_CHECK(a_RN.tensor.scalar_type() == b_RK.tensor.scalar_type());
  MOEBIUS_CHECK(!a_RN.index_R.defined() || !b_RK.index_R.defined() || a_RN.divisor == b_RK.divisor);
  const int64_t num_groups = offsets_G1.size(0) - 1, n = a_RN.tensor.size(1), k = b_RK.tensor.size(1);
  at::Tensor out_GNK = at::empty({num_groups, n, k}, a_RN.tensor.options());
  GroupedGemmArgs args = arguments(GroupedGemmKind::weight_grad, a_RN, offsets_G1);
  args.b = b_RK.tensor.const_data_ptr();
  args.b_index = b_RK.index_R.defined() ? b_RK.index_R.const_data_ptr<int32_t>() : nullptr;
  args.index_divisor = a_RN.index_R.defined() ? a_RN.divisor : b_RK.divisor;
  args.out = out_GNK.mutable_data_ptr();
  args.n = n;
  args.k = k;
  run_on_cpu(args, out_GNK);
  return out_GNK;
}

}  // namespace moebius::ops
