#include "quant/format.h"

#include <ATen/ATen.h>

#include "base/check.h"

namespace moebius::quant {
namespace {

void check_bits(int bits) {
  MOEBIUS_CHECK(bits >= 2 && bits <= 8, "codes of ", bits, " bits");
}

at::Tensor inverse_of(const at::Tensor& scales) {
  const at::Tensor inverse = scales.reciprocal();
  return at::where(scales.ge(kernels::kSmallestScale), inverse, at::zeros({}, inverse.options()));
}

// The codes as fp32 numbers.
at::Tensor rounded(const at::Tensor& x, const at::Tensor& scales, int bits) {
  check_bits(bits);
  MOEBIUS_CHECK(scales.scalar_type() == at::kFloat, "scales are ", scales.scalar_type());
  const double levels = kernels::levels_of_bits(bits);
  at::Tensor result = x.to(at::kFloat) * inverse_of(scales);
  return result.nan_to_num_(0.0, levels, -levels).clamp_(-levels, levels).round_();
}

}  // namespace

at::Tensor range_of(const at::Tensor& x, Granularity granularity) {
  const at::Tensor magnitudes = x.detach().abs().to(at::kFloat);
  if (granularity == Granularity::per_tensor)
    return x.numel() == 0 ? at::zeros({}, magnitudes.options()) : magnitudes.amax();
  MOEBIUS_CHECK_GE(x.dim(), 1);
  if (x.size(-1) > 0) return magnitudes.amax(-1, /*keepdim=*/true);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = 1;
  return at::zeros(sizes, magnitudes.options());
}

at::Tensor scales_of(const at::Tensor& ranges, int bits) {
  check_bits(bits);
  MOEBIUS_CHECK(ranges.scalar_type() == at::kFloat, "ranges are ", ranges.scalar_type());
  const double levels = kernels::levels_of_bits(bits);
  // fp32 by fp32: a double factor would be rounded the same way only by luck.
  const at::Tensor scales = ranges / at::full({}, levels, ranges.options());
  const at::Tensor zero = at::zeros({}, ranges.options());
  const at::Tensor usable = at::where(scales.ge(kernels::kSmallestScale), scales, zero);
  return at::where(ranges.isfinite(), usable, at::full({}, std::nan(""), ranges.options()));
}

at::Tensor codes_of(const at::Tensor& x, const at::Tensor& scales, int bits) {
  return rounded(x.detach(), scales, bits).to(at::kChar);
}

Quantised quantise(const at::Tensor& x, Granularity granularity, int bits) {
  const at::Tensor scales = scales_of(range_of(x, granularity), bits);
  return {codes_of(x, scales, bits), scales};
}

at::Tensor dequantise(const at::Tensor& codes, const at::Tensor& scales, at::ScalarType dtype) {
  MOEBIUS_CHECK(codes.scalar_type() == at::kChar, "codes are ", codes.scalar_type());
  return codes.to(at::kFloat).mul_(scales).to(dtype);
}

at::Tensor rounded_to_codes(const at::Tensor& x, const at::Tensor& scales, int bits) {
  return rounded(x.detach(), scales, bits).mul_(scales).to(x.scalar_type());
}

}  // namespace moebius::quant
