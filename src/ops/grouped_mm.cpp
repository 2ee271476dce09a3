#include "ops/grouped_mm.h"

#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "base/check.h"
#include "ops/device.h"
#include "ops/expert_rows.h"
#include "ops/product_table.h"

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

// Number of the variant of that name, as GroupedGemmArgs::variant; 0 when there is none (any more).
int32_t variant_number(const kernels::KernelTable& table, const GroupedGemmArgs& args,
                       const std::string& name) {
  constexpr int32_t kMost = 16;
  const char* names[kMost];
  const int32_t count = std::min(kMost, table.grouped_gemm_variants(args, names, kMost));
  for (int32_t i = 0; i < count; ++i)
    if (name == names[i]) return i + 1;
  return 0;
}

// False where the device has no kernel for this product, or another way is known to be faster.
bool run_kernel(GroupedGemmArgs args, const at::Device& device) {
  const kernels::KernelTable& table = kernel_table(device);
  if (table.grouped_gemm == nullptr) return false;
  if (table.grouped_gemm_serves != nullptr && !table.grouped_gemm_serves(args)) return false;
  if (table.grouped_gemm_variants != nullptr) {
    if (const ProductWay* way = product_table().find(key_of(args)); way != nullptr) {
      if (way->variant.empty()) return false;
      args.variant = variant_number(table, args, way->variant);
    }
  }
  table.grouped_gemm(args, current_stream(device));
  return true;
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

// The rows of an operand, one after the other.
at::Tensor copied(const RowOperand& operand) {
  if (!operand.index_R.defined()) return operand.tensor;
  return gather_rows(operand.tensor, operand.index_R, operand.divisor);
}

// True when a kernel has done it, with the operands as they are or with gathered rows copied. Else the
// operands are copies, for libtorch.
bool computed(GroupedGemmArgs args, RowOperand& a, RowOperand& b, const at::Device& device) {
  if (run_kernel(args, device)) return true;
  if (!a.index_R.defined() && !b.index_R.defined()) return false;
  a = {copied(a), {}, 1};
  b = {copied(b), {}, 1};
  args.a = a.tensor.const_data_ptr();
  args.b = b.tensor.const_data_ptr();
  args.a_index = args.b_index = nullptr;
  args.index_divisor = 1;
  return run_kernel(args, device);
}

// A product whose result has rows.
at::Tensor row_product(GroupedGemmKind kind, RowOperand a, const at::Tensor& w_GNK,
                       const at::Tensor& offsets_G1) {
  const bool forward = kind == GroupedGemmKind::forward;
  check_operand(a, w_GNK.size(forward ? 2 : 1), offsets_G1);
  MOEBIUS_CHECK_EQ(w_GNK.size(0), offsets_G1.size(0) - 1);
  MOEBIUS_CHECK(w_GNK.is_contiguous() && w_GNK.scalar_type() == a.tensor.scalar_type());
  at::Tensor out = at::empty({a.num_rows(), w_GNK.size(forward ? 1 : 2)}, a.tensor.options());
  RowOperand w{w_GNK, {}, 1};
  GroupedGemmArgs args = arguments(kind, a, offsets_G1);
  args.b = w_GNK.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.n = w_GNK.size(1);
  args.k = w_GNK.size(2);
  if (computed(args, a, w, out.device())) return out;
  out.reset();
  return library_grouped_mm(kind, a.tensor, w_GNK, offsets_G1);
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
  return {x_TD, routing.order_R, routing.weights_TK.size(1)};
}

RowOperand routed_rows_for(const at::Tensor& x_TD, const Routing& routing, int64_t width, bool summed) {
  const RowOperand rows = routed_rows(x_TD, routing);
  if (x_TD.is_cpu()) return rows;
  const auto way_of = [&](GroupedGemmKind kind, RoutedOperand routed, int64_t n, int64_t k) {
    return product_table().find({kind, kind == GroupedGemmKind::forward, routed, n, k,
                                 routing.offsets_E1.size(0) - 1, rows.num_rows()});
  };
  const int64_t own = x_TD.size(1);
  const ProductWay* way = !summed ? way_of(GroupedGemmKind::forward, RoutedOperand::a, width, own)
                                  : way_of(GroupedGemmKind::weight_grad, RoutedOperand::a, own, width);
  if (way == nullptr && summed) way = way_of(GroupedGemmKind::weight_grad, RoutedOperand::b, width, own);
  if (way != nullptr) return way->copy_rows ? RowOperand{copied(rows), {}, 1} : rows;
  const int64_t widest = summed ? 4096 : 8192;
  if (width <= widest) return rows;
  return {copied(rows), {}, 1};
}

at::Tensor grouped_mm(const RowOperand& a_RK, const at::Tensor& w_GNK, const at::Tensor& offsets_G1) {
  return row_product(GroupedGemmKind::forward, a_RK, w_GNK, offsets_G1);
}

ActivatedProduct grouped_mm_swiglu(const RowOperand& a_RK, const at::Tensor& w_GNK, const Routing& routing,
                                   bool keep) {
  if (!a_RK.tensor.is_cpu()) {
    check_operand(a_RK, w_GNK.size(2), routing.offsets_E1);
    const int64_t num_rows = a_RK.num_rows(), width = w_GNK.size(1);
    GroupedGemmArgs args = arguments(GroupedGemmKind::forward, a_RK, routing.offsets_E1);
    ActivatedProduct out{keep ? at::empty({num_rows, width}, a_RK.tensor.options()) : at::Tensor(),
                         at::empty({num_rows, width / 2}, a_RK.tensor.options())};
    args.b = w_GNK.const_data_ptr();
    args.out = keep ? out.product_RN.mutable_data_ptr() : nullptr;
    args.act = out.act.mutable_data_ptr();
    args.n = width;
    args.k = w_GNK.size(2);
    if (run_kernel(args, a_RK.tensor.device())) return out;
  }
  ActivatedProduct out{grouped_mm(a_RK, w_GNK, routing.offsets_E1), {}};
  out.act = activate_rows(out.product_RN, routing);
  if (!keep) out.product_RN.reset();
  return out;
}

at::Tensor grouped_mm_input_grad(const RowOperand& a_RN, const at::Tensor& w_GNK,
                                 const at::Tensor& offsets_G1) {
  return row_product(GroupedGemmKind::input_grad, a_RN, w_GNK, offsets_G1);
}

at::Tensor grouped_mm_weight_grad(const RowOperand& a_RN, const RowOperand& b_RK,
                                  const at::Tensor& offsets_G1) {
  check_operand(a_RN, a_RN.tensor.size(1), offsets_G1);
  check_operand(b_RK, b_RK.tensor.size(1), offsets_G1);
  MOEBIUS_CHECK_EQ(a_RN.num_rows(), b_RK.num_rows());
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
  RowOperand a = a_RN, b = b_RK;
  if (computed(args, a, b, out_GNK.device())) return out_GNK;
  out_GNK.reset();
  return library_grouped_mm(GroupedGemmKind::weight_grad, a.tensor, b.tensor, offsets_G1);
}

}  // namespace moebius::ops
