#include "ops/int8_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/repeat_interleave.h>

#include <utility>

#include "base/check.h"
#include "ops/device.h"
#include "ops/expert_rows.h"

namespace moebius::ops {
namespace {

// Rows below which a launch costs more than reading rows several times.
constexpr int64_t kFewRows = 4096;

// (R, K) fp32: x with each row multiplied by its group's factors, where the device's kernel does not do it.
at::Tensor scaled_rows(const at::Tensor& x_RK, const RowsToCode& which) {
  const at::Tensor rows_RK = which.index_R.defined() ? gather_rows(x_RK, which.index_R, which.divisor) : x_RK;
  const at::Tensor counts_G = which.offsets_G1.diff();
  const int64_t in_use = counts_G.sum().item<int64_t>();
  at::Tensor scaled_RK = rows_RK.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  scaled_RK.narrow(0, 0, in_use).mul_(which.factors_GK.index_select(0, at::repeat_interleave(counts_G)));
  return scaled_RK;
}

}  // namespace

const kernels::KernelTable& int8_kernels(at::Device device) {
  const kernels::KernelTable& table = kernel_table(device);
  MOEBIUS_CHECK(table.int8_gemm != nullptr, "no integer products on ", device.str());
  return table;
}

CodedRows coded_rows(const at::Tensor& x_RK, Int8Activations activations, double static_scale,
                     const RowsToCode& which) {
  if (x_RK.is_cpu() && which.factors_GK.defined()) {
    RowsToCode rest;
    rest.most = which.most;
    return coded_rows(scaled_rows(x_RK, which), activations, static_scale, rest);
  }
  const int64_t all = which.index_R.defined() ? which.index_R.size(0) : x_RK.size(0);
  const int64_t num_rows = which.most < 0 ? all : which.most;
  const int64_t digits = activations == Int8Activations::two_digits ? 2 : 1;
  const int64_t stride = kernels::int8_padded_k(x_RK.size(1));
  CodedRows rows{at::empty({num_rows * digits, stride}, x_RK.options().dtype(at::kByte)),
                 at::empty({num_rows * digits}, x_RK.options().dtype(at::kFloat)), digits};
  const auto scale = static_cast<float>(static_scale);
  kernels::Int8RowsArgs args{};
  args.x = x_RK.const_data_ptr();
  args.index = which.index_R.defined() ? which.index_R.const_data_ptr<int32_t>() : nullptr;
  args.index_divisor = which.divisor;
  args.codes = rows.codes.mutable_data_ptr<uint8_t>();
  args.scales = rows.scales.mutable_data_ptr<float>();
  args.static_scale = static_scale > 0 ? &scale : nullptr;
  args.num_rows = num_rows;
  args.width = args.x_stride = x_RK.size(1);
  args.codes_stride = stride;
  args.dtype = kernel_dtype(x_RK);
  args.digits = digits;
  args.valid_rows = which.in_use;
  args.product_follows = true;
  if (which.factors_GK.defined()) {
    MOEBIUS_CHECK_EQ(which.factors_GK.size(1), x_RK.size(1));
    MOEBIUS_CHECK_EQ(which.offsets_G1.size(0), which.factors_GK.size(0) + 1);
    args.column_scales = which.factors_GK.const_data_ptr<float>();
    args.offsets = which.offsets_G1.const_data_ptr<int32_t>();
    args.num_groups = which.factors_GK.size(0);
  }
  int8_kernels(x_RK.device()).int8_rows(args, current_stream(x_RK.device()));
  return rows;
}

CodedRows routed_codes(const at::Tensor& x_TK, const at::Tensor& index_R, int64_t divisor,
                       Int8Activations activations) {
  const int64_t num_rows = index_R.size(0);
  RowsToCode in_order;
  if (!x_TK.is_cpu()) {
    in_order.index_R = index_R;
    in_order.divisor = divisor;
    // Rounding a row again costs what reading it does; copying its codes costs another kernel.
    if (divisor <= 2 || num_rows <= kFewRows) return coded_rows(x_TK, activations, 0, in_order);
  }
  CodedRows rows = coded_rows(x_TK, activations, 0);
  rows.index_R = index_R;
  rows.divisor = divisor;
  if (x_TK.is_cpu()) return rows;
  // The kernel that copies rows of bf16 copies codes, two at a time.
  const int64_t stride = rows.codes.size(1), source_rows = rows.num_rows();
  at::Tensor copies = at::empty({num_rows * rows.digits, stride}, rows.codes.options());
  for (int64_t digit = 0; digit < rows.digits; ++digit) {
    kernels::GatherRowsArgs args{};
    args.src = rows.codes.const_data_ptr<uint8_t>() + digit * source_rows * stride;
    args.order = index_R.const_data_ptr<int32_t>();
    args.rows = copies.mutable_data_ptr<uint8_t>() + digit * num_rows * stride;
    args.num_rows = num_rows;
    args.width = stride / 2;
    args.top_k = divisor;
    args.dtype = kernels::DType::bf16;
    kernel_table(x_TK.device()).gather_rows(args, current_stream(x_TK.device()));
  }
  rows.codes = std::move(copies);
  rows.is_copied = true;
  return rows;
}

kernels::Int8GemmArgs int8_product_of(const CodedRows& a, const Int8Weight& weight, const at::Tensor& out) {
  kernels::Int8GemmArgs args{};
  args.a = a.codes.const_data_ptr<uint8_t>();
  args.a_scales = a.scales.const_data_ptr<float>();
  args.index_divisor = a.divisor;
  if (a.index_R.defined())
    (a.is_copied ? args.scale_index : args.a_index) = a.index_R.const_data_ptr<int32_t>();
  args.b = weight.packed.const_data_ptr<int8_t>();
  args.b_scales = weight.scales.const_data_ptr<float>();
  args.b_offsets = weight.offsets.defined() ? weight.offsets.const_data_ptr<int32_t>() : nullptr;
  args.out = out.mutable_data_ptr();
  args.num_groups = weight.num_groups;
  args.num_rows = out.size(0);
  args.n = weight.n;
  args.k = weight.k;
  args.a_stride = a.codes.size(1);
  args.swiglu = weight.gate_up;
  args.out_dtype = kernel_dtype(out);
  args.digits = a.digits;
  args.num_a_rows = a.num_rows();
  return args;
}

at::Tensor int8_grouped(const CodedRows& a, const Int8Weight& weight, const at::Tensor& bias_GN,
                        const at::Tensor& offsets_G1, int64_t num_rows, at::ScalarType dtype,
                        const at::Tensor& gate_up) {
  MOEBIUS_CHECK_EQ(offsets_G1.size(0), weight.num_groups + 1);
  at::Tensor out =
      at::empty({num_rows, weight.gate_up ? weight.n / 2 : weight.n}, a.scales.options().dtype(dtype));
  kernels::Int8GemmArgs args = int8_product_of(a, weight, out);
  args.offsets = offsets_G1.const_data_ptr<int32_t>();
  if (gate_up.defined()) args.gate_up = gate_up.mutable_data_ptr();
  if (bias_GN.defined()) {
    MOEBIUS_CHECK(bias_GN.scalar_type() == at::kFloat && bias_GN.numel() == weight.num_groups * weight.n &&
                      bias_GN.is_contiguous() && !weight.gate_up,
                  "bias of ", bias_GN.sizes());
    args.bias = bias_GN.const_data_ptr<float>();
  }
  int8_kernels(out.device()).int8_gemm(args, current_stream(out.device()));
  return out;
}

}  // namespace moebius::ops
