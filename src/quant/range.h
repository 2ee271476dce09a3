// Ranges of values: what the largest code stands for. No autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moebius::quant {

// Which values of a tensor share a range.
enum class Sharing : uint8_t {
  row,     // all of the last dim: an output channel of a weight, a token
  matrix,  // the last two dims: each expert's weight by itself
  all      // the whole tensor
};

enum class RangeRule : uint8_t {
  minmax,      // the largest magnitude: nothing is clipped
  percentile,  // the magnitude that a share of the values does not exceed
  mse  // the one of kNumRanges parts of the largest magnitude whose rounding has the least mean square
       // error (Bhalgat et al. 2020, "LSQ+", by search instead of by gradient)
};

struct RangeOptions {
  RangeRule rule = RangeRule::minmax;
  double percentile = 0.999;  // share of the values inside
  int bits = 8;               // of the codes that `mse` tries
};

inline constexpr int kNumRanges = 28;  // 1, 0.975, ..., 0.325 of the largest magnitude

// Ranges of x (fp32 or bf16) in fp32, of a shape that broadcasts to it: (..., 1), (..., 1, 1) or (). A tensor
// without elements has the range 0; one with values that are not finite has no finite range under minmax.
at::Tensor chosen_range(const at::Tensor& x, Sharing sharing, const RangeOptions& options);

}  // namespace moebius::quant
