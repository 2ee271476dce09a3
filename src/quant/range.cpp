// Shapes: G groups that share a range, n values of a group.
#include "quant/range.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "quant/format.h"

namespace moebius::quant {
namespace {

constexpr double kRangeStep = 0.025;

// The dims of a tensor's ranges.
std::vector<int64_t> range_sizes(at::IntArrayRef sizes, Sharing sharing) {
  const size_t shared = sharing == Sharing::row ? 1 : 2;
  if (sharing == Sharing::all || (sharing == Sharing::matrix && sizes.size() <= shared)) return {};
  std::vector<int64_t> result = sizes.vec();
  for (size_t i = 0; i < shared; ++i) result[result.size() - 1 - i] = 1;
  return result;
}

at::Tensor least_error_range(const at::Tensor& x_Gn, const at::Tensor& largest_G1, int bits) {
  at::Tensor best_range = largest_G1, best_error;
  for (int i = 0; i < kNumRanges; ++i) {
    const at::Tensor range = largest_G1 * (1.0 - kRangeStep * i);
    const at::Tensor error =
        (rounded_to_codes(x_Gn, scales_of(range, bits), bits) - x_Gn).square_().mean(1, true);
    if (i == 0) {
      best_error = error;
      continue;
    }
    const at::Tensor better = error.lt(best_error);
    best_range = at::where(better, range, best_range);
    best_error = at::where(better, error, best_error);
  }
  return best_range;
}

}  // namespace

at::Tensor chosen_range(const at::Tensor& x, Sharing sharing, const RangeOptions& options) {
  const std::vector<int64_t> sizes = range_sizes(x.sizes(), sharing);
  int64_t groups = 1;
  for (const int64_t size : sizes) groups *= size;
  if (x.numel() == 0) return at::zeros(sizes, x.options().dtype(at::kFloat));
  const at::NoGradGuard no_grad;
  const at::Tensor x_Gn = x.detach().reshape({groups, -1}).to(at::kFloat);
  const at::Tensor magnitudes_Gn = x_Gn.abs();
  at::Tensor range_G1;
  switch (options.rule) {
    case RangeRule::minmax:
      range_G1 = magnitudes_Gn.amax(1, true);
      break;
    case RangeRule::percentile: {
      const int64_t n = x_Gn.size(1);
      const auto inside = static_cast<int64_t>(std::ceil(options.percentile * static_cast<double>(n)));
      range_G1 = std::get<0>(magnitudes_Gn.kthvalue(std::clamp<int64_t>(inside, 1, n), 1, true));
      break;
    }
    case RangeRule::mse:
      range_G1 = least_error_range(x_Gn, magnitudes_Gn.amax(1, true), options.bits);
      break;
  }
  return range_G1.reshape(sizes);
}

}  // namespace moebius::quant
