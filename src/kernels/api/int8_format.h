// The one definition of the project's integer formats: symmetric codes, no zero point.
//   scale = range / levels,  code = clamp(round(x / scale), -levels, levels),  value = code * scale
// with levels = 2^(bits - 1) - 1 (127 for int8: -128 is not used, so that a code and its negative are both
// there). Rounding is to nearest, halves to even. x / scale is computed as x * (1 / scale) in fp32, by every
// kernel and by quant/format.h alike, so that all of them give the same codes bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace moebius::kernels {

inline constexpr int kInt8Levels = 127;

constexpr int levels_of_bits(int bits) {
  return (1 << (bits - 1)) - 1;
}

// A range that would need a smaller scale counts as 0: such a scale has no finite reciprocal.
inline constexpr float kSmallestScale = std::numeric_limits<float>::min();

// range >= 0: the largest magnitude that is not clipped. 0 (all codes are then 0) for a range of 0 or next to
// it; NaN for one that is not finite, so that whatever is computed with it shows.
inline float scale_of_range(float range, int levels = kInt8Levels) {
  if (!std::isfinite(range)) return std::numeric_limits<float>::quiet_NaN();
  const float scale = range / static_cast<float>(levels);
  return scale >= kSmallestScale ? scale : 0.0f;
}

// What values are multiplied with; 0 for a scale of 0 or NaN.
inline float inverse_of_scale(float scale) {
  return scale >= kSmallestScale ? 1.0f / scale : 0.0f;
}

// NaN gives 0.
inline int32_t code_of(float x, float inverse, int levels = kInt8Levels) {
  const float scaled = x * inverse, most = static_cast<float>(levels);
  if (std::isnan(scaled)) return 0;
  return static_cast<int32_t>(std::nearbyint(scaled < -most ? -most : scaled > most ? most : scaled));
}

}  // namespace moebius::kernels
