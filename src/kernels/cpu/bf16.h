// bf16 in memory: the upper half of an fp32. Scalar conversions; the vector ones are in simd-inl.h.
#pragma once

#include <bit>
#include <cstdint>

namespace moebius::kernels::cpu {

struct Bf16 {
  uint16_t bits;
};

inline float to_float(float value) {
  return value;
}
inline float to_float(Bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest even; NaN stays NaN.
inline void from_float(float value, float& out) {
  out = value;
}
inline void from_float(float value, Bf16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool nan = value != value;
  out.bits = static_cast<uint16_t>((nan ? bits | 0x00400000u : bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace moebius::kernels::cpu
