// Arithmetic on sizes.
#pragma once

#include <cstdint>

namespace moebius {

// a / b rounded up; a >= 0, b > 0.
constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The least multiple of `step` that is not below `value`; value >= 0, step > 0.
constexpr int64_t round_up(int64_t value, int64_t step) {
  return ceil_div(value, step) * step;
}

}  // namespace moebius
