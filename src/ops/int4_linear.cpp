#include "ops/int4_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include "base/check.h"
#include "base/integers.h"
#include "kernels/api/int4_gemm.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

constexpr int64_t kInt4GroupStep = 64;
constexpr int64_t kInt4Digits = 2;  // of activations

void check_int4_device(const at::Tensor& tensor) {
  MOEBIUS_CHECK(has_int4_products(tensor.device()), "no products with int4 weights on ",
                tensor.device().str());
}

void check_int4_group(int64_t group) {
  MOEBIUS_CHECK(group >= kInt4GroupStep && group % kInt4GroupStep == 0, "groups of ", group);
}

// The first `num_rows` rows of x as codes of 16 bits.
struct TwoDigitRows {
  at::Tensor codes, scales;
};

TwoDigitRows two_digit_rows(const at::Tensor& x_RK, int64_t group, int64_t num_rows) {
  check_int4_device(x_RK);
  const int64_t stride = kernels::int4_padded_k(x_RK.size(1), group);
  TwoDigitRows rows{at::empty({num_rows * kInt4Digits, stride}, x_RK.options().dtype(at::kByte)),
                    at::empty({num_rows * kInt4Digits}, x_RK.options().dtype(at::kFloat))};
  kernels::Int8RowsArgs args{};
  args.x = x_RK.const_data_ptr();
  args.index_divisor = 1;
  args.codes = rows.codes.mutable_data_ptr<uint8_t>();
  args.scales = rows.scales.mutable_data_ptr<float>();
  args.num_rows = num_rows;
  args.width = args.x_stride = x_RK.size(1);
  args.codes_stride = stride;
  args.dtype = kernel_dtype(x_RK);
  args.digits = kInt4Digits;
  kernel_table(x_RK.device()).int8_rows(args, current_stream(x_RK.device()));
  return rows;
}

kernels::Int4GemmArgs int4_product_of(const TwoDigitRows& a, const Int4Weight& weight,
                                      const at::Tensor& out) {
  kernels::Int4GemmArgs args{};
  args.a = a.codes.const_data_ptr<uint8_t>();
  args.a_scales = a.scales.const_data_ptr<float>();
  args.index_divisor = 1;
  args.b = weight.packed.const_data_ptr<uint8_t>();
  args.b_scales = weight.scales.const_data_ptr<float>();
  args.b_sums = weight.sums.const_data_ptr<int16_t>();
  args.out = out.mutable_data_ptr();
  args.num_groups = weight.num_groups;
  args.num_rows = out.size(0);
  args.n = weight.n;
  args.k = weight.k;
  args.group = weight.group;
  args.a_stride = a.codes.size(1);
  args.out_dtype = kernel_dtype(out);
  args.digits = kInt4Digits;
  return args;
}

}  // namespace

bool has_int4_products(at::Device device) {
  return device.is_cpu();
}

Int4Weight pack_int4(const at::Tensor& codes, const at::Tensor& scales, int64_t k, int64_t group) {
  check_int4_group(group);
  check_int4_device(codes);
  MOEBIUS_CHECK(codes.scalar_type() == at::kByte && scales.scalar_type() == at::kFloat, codes.scalar_type(),
                " codes and ", scales.scalar_type(), " scales");
  MOEBIUS_CHECK(codes.dim() == 2 || codes.dim() == 3, "codes of ", codes.sizes());
  MOEBIUS_CHECK_EQ(codes.size(-1), ceil_div(k, int64_t{2}));
  MOEBIUS_CHECK_EQ(scales.size(-1), kernels::int4_num_groups_k(k, group));
  Int4Weight weight;
  weight.num_groups = codes.dim() == 3 ? codes.size(0) : 1;
  weight.n = codes.size(-2);
  weight.k = k;
  weight.group = group;
  const int64_t padded =
      weight.num_groups * kernels::int8_padded_n(weight.n) * kernels::int4_num_groups_k(k, group);
  weight.packed =
      at::empty({kernels::int4_packed_bytes(weight.num_groups, weight.n, k, group)}, codes.options());
  weight.scales = at::empty({padded}, scales.options());
  weight.sums = at::empty({padded}, scales.options().dtype(at::kShort));
  const at::Tensor whole_codes = codes.contiguous(), whole_scales = scales.contiguous();
  kernels::Int4PackArgs args{};
  args.codes = whole_codes.const_data_ptr<uint8_t>();
  args.scales = whole_scales.const_data_ptr<float>();
  args.packed = weight.packed.mutable_data_ptr<uint8_t>();
  args.packed_scales = weight.scales.mutable_data_ptr<float>();
  args.sums = weight.sums.mutable_data_ptr<int16_t>();
  args.num_groups = weight.num_groups;
  args.n = weight.n;
  args.k = k;
  args.group = group;
  kernels::int4_pack(args);
  return weight;
}

at::Tensor int4_values(const at::Tensor& codes, const at::Tensor& scales, int64_t k, int64_t group,
                       at::ScalarType dtype) {
  const at::Tensor numbers =
      at::stack({codes.bitwise_and(15), codes.bitwise_right_shift(4)}, -1).flatten(-2).narrow(-1, 0, k);
  const at::Tensor each = scales.repeat_interleave(group, -1).narrow(-1, 0, k);
  return numbers.to(at::kFloat).sub_(8).mul_(each).to(dtype);
}

at::Tensor unpack_int4(const Int4Weight& weight, at::ScalarType dtype) {
  constexpr int64_t kCols = kernels::kInt8PanelCols;
  const int64_t padded_k = kernels::int4_padded_k(weight.k, weight.group), groups = weight.num_groups,
                panels = kernels::int8_padded_n(weight.n) / kCols, quads = padded_k / weight.group;
  // [matrix][panel][word][16 columns][4], low halves before high ones -> [matrix][panel][32 columns][k]
  const at::Tensor bytes = weight.packed.view({groups, panels, padded_k / 4, kCols / 2, 4});
  const at::Tensor codes = at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, 3)
                               .permute({0, 1, 3, 4, 2, 5})
                               .reshape({groups, panels, kCols, padded_k})
                               .to(at::kFloat)
                               .sub_(8);
  const at::Tensor scales =
      weight.scales.view({groups, panels, quads, kCols}).transpose(2, 3).repeat_interleave(weight.group, -1);
  const at::Tensor values =
      codes.mul(scales).flatten(1, 2).narrow(1, 0, weight.n).narrow(2, 0, weight.k).to(dtype).contiguous();
  return groups == 1 ? values.squeeze(0) : values;
}

at::Tensor int4_linear(const at::Tensor& x, const Int4Weight& weight) {
  MOEBIUS_CHECK_EQ(x.size(-1), weight.k);
  MOEBIUS_CHECK_EQ(weight.num_groups, 1);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.n;
  const at::Tensor x_RK = x.detach().reshape({-1, weight.k}).contiguous();
  const TwoDigitRows a = two_digit_rows(x_RK, weight.group, x_RK.size(0));
  at::Tensor y_RN = at::empty({x_RK.size(0), weight.n}, x.options());
  kernels::int4_gemm(int4_product_of(a, weight, y_RN));
  return y_RN.view(sizes);
}

at::Tensor int4_grouped_mm(const at::Tensor& x, const at::Tensor& index_R, int64_t divisor,
                           const Int4Weight& weight, const at::Tensor& bias_GN, const at::Tensor& offsets_G1,
                           at::ScalarType dtype) {
  MOEBIUS_CHECK_EQ(x.size(1), weight.k);
  MOEBIUS_CHECK_EQ(offsets_G1.size(0), weight.num_groups + 1);
  // Rows past the last offset are never read.
  const int64_t in_use =
      index_R.defined() ? x.size(0) : offsets_G1.const_data_ptr<int32_t>()[weight.num_groups];
  const TwoDigitRows a = two_digit_rows(x.detach().contiguous(), weight.group, in_use);
  const at::Tensor out =
      at::empty({index_R.defined() ? index_R.size(0) : x.size(0), weight.n}, a.scales.options().dtype(dtype));
  kernels::Int4GemmArgs args = int4_product_of(a, weight, out);
  args.a_index = index_R.defined() ? index_R.const_data_ptr<int32_t>() : nullptr;
  args.index_divisor = divisor;
  args.offsets = offsets_G1.const_data_ptr<int32_t>();
  if (bias_GN.defined()) {
    MOEBIUS_CHECK(bias_GN.scalar_type() == at::kFloat && bias_GN.is_contiguous() &&
                      bias_GN.numel() == weight.num_groups * weight.n,
                  "bias of ", bias_GN.sizes());
    args.bias = bias_GN.const_data_ptr<float>();
  }
  kernels::int4_gemm(args);
  return out;
}

}  // namespace moebius::ops
