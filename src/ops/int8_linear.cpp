#include "ops/int8_linear.h"

#include <ATen/ops/empty.h>

#include "base/check.h"
#include "ops/device.h"
#include "ops/expert_rows.h"

namespace moebius::ops {
namespace {

const kernels::KernelTable& int8_kernels(at::Device device) {
  const kernels::KernelTable& table = kernel_table(device);
  MOEBIUS_CHECK(table.int8_gemm != nullptr, "no integer products on ", device.str());
  return table;
}

// Rows of codes and their scales.
struct CodedRows {
  at::Tensor codes;   // uint8 (rows * digits, stride)
  at::Tensor scales;  // fp32 (rows * digits)
  int64_t digits;
};

// The first `num_rows` rows of x, or all.
CodedRows coded_rows(const at::Tensor& x_RK, Int8Activations activations, double static_scale,
                     int64_t num_rows = -1) {
  if (num_rows < 0) num_rows = x_RK.size(0);
  const int64_t digits = activations == Int8Activations::two_digits ? 2 : 1;
  const int64_t stride = kernels::int8_padded_k(x_RK.size(1));
  CodedRows rows{at::empty({num_rows * digits, stride}, x_RK.options().dtype(at::kByte)),
                 at::empty({num_rows * digits}, x_RK.options().dtype(at::kFloat)), digits};
  const auto scale = static_cast<float>(static_scale);
  kernels::Int8RowsArgs args{};
  args.x = x_RK.const_data_ptr();
  args.index_divisor = 1;
  args.codes = rows.codes.mutable_data_ptr<uint8_t>();
  args.scales = rows.scales.mutable_data_ptr<float>();
  args.static_scale = static_scale > 0 ? &scale : nullptr;
  args.num_rows = num_rows;
  args.width = args.x_stride = x_RK.size(1);
  args.codes_stride = stride;
  args.dtype = kernel_dtype(x_RK);
  args.digits = digits;
  int8_kernels(x_RK.device()).int8_rows(args, current_stream(x_RK.device()));
  return rows;
}

// What the arguments of a product have in common.
kernels::Int8GemmArgs product_of(const CodedRows& a, const Int8Weight& weight, const at::Tensor& out) {
  kernels::Int8GemmArgs args{};
  args.a = a.codes.const_data_ptr<uint8_t>();
  args.a_scales = a.scales.const_data_ptr<float>();
  args.index_divisor = 1;
  args.b = weight.packed.const_data_ptr<int8_t>();
  args.b_scales = weight.scales.const_data_ptr<float>();
  args.b_offsets = weight.offsets.const_data_ptr<int32_t>();
  args.out = out.mutable_data_ptr();
  args.num_groups = weight.num_groups;
  args.num_rows = out.size(0);
  args.n = weight.n;
  args.k = weight.k;
  args.a_stride = a.codes.size(1);
  args.swiglu = weight.gate_up;
  args.out_dtype = kernel_dtype(out);
  args.digits = a.digits;
  return args;
}

at::Tensor grouped(const CodedRows& a, const at::Tensor& index_R, int64_t divisor, const Int8Weight& weight,
                   const at::Tensor& bias_GN, const at::Tensor& offsets_G1, int64_t num_rows,
                   at::ScalarType dtype) {
  MOEBIUS_CHECK_EQ(offsets_G1.size(0), weight.num_groups + 1);
  at::Tensor out =
      at::empty({num_rows, weight.gate_up ? weight.n / 2 : weight.n}, a.scales.options().dtype(dtype));
  kernels::Int8GemmArgs args = product_of(a, weight, out);
  args.a_index = index_R.defined() ? index_R.const_data_ptr<int32_t>() : nullptr;
  args.index_divisor = divisor;
  args.offsets = offsets_G1.const_data_ptr<int32_t>();
  if (bias_GN.defined()) {
    MOEBIUS_CHECK(bias_GN.scalar_type() == at::kFloat && bias_GN.numel() == weight.num_groups * weight.n &&
                      bias_GN.is_contiguous() && !weight.gate_up,
                  "bias of ", bias_GN.sizes());
    args.bias = bias_GN.const_data_ptr<float>();
  }
  int8_kernels(out.device()).int8_gemm(args, current_stream(out.device()));
  return out;
}

}  // namespace

bool has_int8_products(at::Device device) {
  return kernel_table(device).int8_gemm != nullptr;
}

Int8Weight pack_int8(const at::Tensor& codes, const at::Tensor& scales, bool gate_up) {
  MOEBIUS_CHECK(codes.scalar_type() == at::kChar && scales.scalar_type() == at::kFloat, codes.scalar_type(),
                " codes and ", scales.scalar_type(), " scales");
  MOEBIUS_CHECK(codes.dim() == 2 || codes.dim() == 3, "codes of ", codes.sizes());
  Int8Weight weight;
  weight.num_groups = codes.dim() == 3 ? codes.size(0) : 1;
  weight.n = codes.size(-2);
  weight.k = codes.size(-1);
  weight.gate_up = gate_up;
  const int64_t columns = weight.num_groups * kernels::int8_padded_n(weight.n);
  MOEBIUS_CHECK(scales.numel() == 1 || scales.numel() == weight.num_groups * weight.n, "scales of ",
                scales.sizes(), " for codes of ", codes.sizes());
  weight.packed =
      at::empty({kernels::int8_packed_bytes(weight.num_groups, weight.n, weight.k)}, codes.options());
  weight.scales = at::empty({columns}, scales.options());
  weight.offsets = at::empty({columns}, scales.options().dtype(at::kInt));
  const at::Tensor whole_codes = codes.contiguous(), whole_scales = scales.contiguous();
  kernels::Int8PackArgs args{};
  args.codes = whole_codes.const_data_ptr<int8_t>();
  args.scales = whole_scales.const_data_ptr<float>();
  args.packed = weight.packed.mutable_data_ptr<int8_t>();
  args.packed_scales = weight.scales.mutable_data_ptr<float>();
  args.offsets = weight.offsets.mutable_data_ptr<int32_t>();
  args.num_groups = weight.num_groups;
  args.n = weight.n;
  args.k = weight.k;
  args.one_scale = scales.numel() == 1;
  args.columns = gate_up ? kernels::Int8Columns::gate_up : kernels::Int8Columns::plain;
  int8_kernels(codes.device()).int8_pack(args, current_stream(codes.device()));
  return weight;
}

at::Tensor unpack_int8(const Int8Weight& weight, at::ScalarType dtype) {
  constexpr int64_t kCols = kernels::kInt8PanelCols;
  const int64_t padded_k = kernels::int8_padded_k(weight.k), groups = weight.num_groups,
                panels = kernels::int8_padded_n(weight.n) / kCols;
  // [group][panel][word][column][4] -> [group][panel][column][k]
  at::Tensor values = weight.packed.view({groups, panels, padded_k / 4, kCols, 4})
                          .permute({0, 1, 3, 2, 4})
                          .reshape({groups, panels * kCols, padded_k})
                          .to(at::kFloat)
                          .mul_(weight.scales.view({groups, -1, 1}));
  if (weight.gate_up)
    values = values.view({groups, panels, 2, kCols / 2, padded_k}).transpose(2, 3).flatten(1, 3);
  values = values.narrow(1, 0, weight.n).narrow(2, 0, weight.k).to(dtype).contiguous();
  return groups == 1 ? values.squeeze(0) : values;
}

at::Tensor int8_linear(const at::Tensor& x, const Int8Weight& weight, const at::Tensor& bias_N,
                       Int8Activations activations, double static_scale) {
  MOEBIUS_CHECK_EQ(x.size(-1), weight.k);
  MOEBIUS_CHECK(weight.num_groups == 1 && !weight.gate_up, "weights of experts");
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.n;
  const at::Tensor x_RK = x.detach().reshape({-1, weight.k}).contiguous();
  const CodedRows a = coded_rows(x_RK, activations, static_scale);
  at::Tensor y_RN = at::empty({x_RK.size(0), weight.n}, x.options());
  kernels::Int8GemmArgs args = product_of(a, weight, y_RN);
  at::Tensor bias;
  if (bias_N.defined()) {
    MOEBIUS_CHECK_EQ(bias_N.numel(), weight.n);
    bias = bias_N.detach().to(at::kFloat).contiguous();
    args.bias = bias.const_data_ptr<float>();
  }
  int8_kernels(x.device()).int8_gemm(args, current_stream(x.device()));
  return y_RN.view(sizes);
}

at::Tensor int8_grouped_mm(const at::Tensor& x, const at::Tensor& index_R, int64_t divisor,
                           const Int8Weight& weight, const at::Tensor& bias_GN, const at::Tensor& offsets_G1,
                           at::ScalarType dtype, Int8Activations activations) {
  MOEBIUS_CHECK_EQ(x.size(1), weight.k);
  // Rows past the last offset are never read.
  const int64_t in_use =
      index_R.defined() ? x.size(0) : offsets_G1.const_data_ptr<int32_t>()[weight.num_groups];
  const CodedRows a = coded_rows(x.detach().contiguous(), activations, 0, in_use);
  return grouped(a, index_R, divisor, weight, bias_GN, offsets_G1,
                 index_R.defined() ? index_R.size(0) : x.size(0), dtype);
}

at::Tensor int8_expert_ffn(const at::Tensor& x_TD, const Int8Weight& gate_up, const Int8Weight& down,
                           const Routing& routing, Int8Activations activations) {
  MOEBIUS_CHECK(gate_up.gate_up && !down.gate_up, "experts packed for another use");
  MOEBIUS_CHECK_EQ(gate_up.n, 2 * down.k);
  MOEBIUS_CHECK_EQ(x_TD.size(1), down.n);
  // The activation stays fp32 until it is quantised: rounding it to bf16 first would be a second rounding.
  const at::Tensor act_RF = int8_grouped_mm(x_TD, routing.order_R, routing.weights_TK.size(1), gate_up, {},
                                            routing.offsets_E1, at::kFloat, activations);
  const at::Tensor y_RD =
      int8_grouped_mm(act_RF, {}, 1, down, {}, routing.offsets_E1, x_TD.scalar_type(), activations);
  return combine_rows(y_RD, routing.weights_TK.detach().contiguous(), routing);
}

}  // namespace moebius::ops
