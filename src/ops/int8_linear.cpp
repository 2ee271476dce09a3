#include "ops/int8_linear.h"

#include <ATen/ops/empty.h>

#include "base/check.h"
#include "ops/device.h"
#include "ops/expert_rows.h"
#include "ops/int8_rows.h"

namespace moebius::ops {
bool has_int8_products(at::Device device) {
  const kernels::KernelTable& table = kernel_table(device);
  return table.int8_gemm != nullptr && (table.int8_serves == nullptr || table.int8_serves());
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
  const kernels::KernelTable& table = int8_kernels(codes.device());
  const kernels::Int8Layout layout = table.int8_layout;
  const int64_t columns = weight.num_groups * kernels::int8_padded_n(weight.n, layout);
  MOEBIUS_CHECK(scales.numel() == 1 || scales.numel() == weight.num_groups * weight.n, "scales of ",
                scales.sizes(), " for codes of ", codes.sizes());
  weight.packed =
      at::empty({kernels::int8_packed_bytes(weight.num_groups, weight.n, weight.k, layout)}, codes.options());
  weight.scales = at::empty({columns}, scales.options());
  if (layout == kernels::Int8Layout::panels)
    weight.offsets = at::empty({columns}, scales.options().dtype(at::kInt));
  const at::Tensor whole_codes = codes.contiguous(), whole_scales = scales.contiguous();
  kernels::Int8PackArgs args{};
  args.codes = whole_codes.const_data_ptr<int8_t>();
  args.scales = whole_scales.const_data_ptr<float>();
  args.packed = weight.packed.mutable_data_ptr<int8_t>();
  args.packed_scales = weight.scales.mutable_data_ptr<float>();
  args.offsets = weight.offsets.defined() ? weight.offsets.mutable_data_ptr<int32_t>() : nullptr;
  args.num_groups = weight.num_groups;
  args.n = weight.n;
  args.k = weight.k;
  args.one_scale = scales.numel() == 1;
  args.columns = gate_up ? kernels::Int8Columns::gate_up : kernels::Int8Columns::plain;
  table.int8_pack(args, current_stream(codes.device()));
  return weight;
}

at::Tensor unpack_int8(const Int8Weight& weight, at::ScalarType dtype) {
  constexpr int64_t kCols = kernels::kInt8PanelCols;
  const kernels::Int8Layout layout = int8_kernels(weight.packed.device()).int8_layout;
  const int64_t padded_k = kernels::int8_padded_k(weight.k), groups = weight.num_groups,
                padded_n = kernels::int8_padded_n(weight.n, layout), panels = padded_n / kCols;
  at::Tensor codes = weight.packed;
  // [group][panel][word][column][4] -> [group][panel][column][k]
  if (layout == kernels::Int8Layout::panels)
    codes = codes.view({groups, panels, padded_k / 4, kCols, 4}).permute({0, 1, 3, 2, 4});
  at::Tensor values =
      codes.reshape({groups, padded_n, padded_k}).to(at::kFloat).mul_(weight.scales.view({groups, -1, 1}));
  if (weight.gate_up && layout == kernels::Int8Layout::panels)
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
  kernels::Int8GemmArgs args = int8_product_of(a, weight, y_RN);
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
  if (index_R.defined())
    return int8_grouped(routed_codes(x.detach().contiguous(), index_R, divisor, activations), weight, bias_GN,
                        offsets_G1, index_R.size(0), dtype);
  // Rows past the last offset are never read.
  RowsToCode in_use;
  const int32_t* last = offsets_G1.const_data_ptr<int32_t>() + weight.num_groups;
  if (x.is_cpu()) {
    in_use.most = *last;
  } else {
    in_use.in_use = last;
  }
  return int8_grouped(coded_rows(x.detach().contiguous(), activations, 0, in_use), weight, bias_GN,
                      offsets_G1, x.size(0), dtype);
}

at::Tensor int8_expert_ffn(const at::Tensor& x_TD, const Int8Weight& gate_up, const Int8Weight& down,
                           const Routing& routing, Int8Activations activations) {
  MOEBIUS_CHECK(gate_up.gate_up && !down.gate_up, "experts packed for another use");
  MOEBIUS_CHECK_EQ(gate_up.n, 2 * down.k);
  MOEBIUS_CHECK_EQ(x_TD.size(1), down.n);
  // The activation stays fp32 until it is quantised: rounding it to bf16 first would be a second rounding. On
  // a GPU, where each byte costs, it is bf16 unless two digits are asked for.
  const bool wide = x_TD.is_cpu() || activations == Int8Activations::two_digits;
  const at::Tensor act_RF =
      int8_grouped_mm(x_TD, routing.order_R, routing.weights_TK.size(1), gate_up, {}, routing.offsets_E1,
                      wide ? at::kFloat : x_TD.scalar_type(), activations);
  const at::Tensor y_RD =
      int8_grouped_mm(act_RF, {}, 1, down, {}, routing.offsets_E1, x_TD.scalar_type(), activations);
  return combine_rows(y_RD, routing.weights_TK.detach().contiguous(), routing);
}

}  // namespace moebius::ops
