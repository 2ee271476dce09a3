// Moments of AdamW in eight bits: blocks of kMomentBlock elements with one fp32 scale each, the largest
// magnitude of the block, and per element a small floating-point number in (0, 1] of the scale: three bits of
// mantissa, the rest exponent. The first moment has a sign, and 16 octaves below its scale; the second none,
// and 32. (Block-wise scales: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"; a
// floating-point code instead of that paper's table, because it is made by a shift.)
//
// Rounding is stochastic, up or down with the chances that keep the mean: to the nearest, a moment that
// decays by less than half a code a step would never move. The chances come from a hash of (step, tensor,
// element), so that a step is a pure function of its inputs.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MOEBIUS_ANY_SIDE __host__ __device__ __forceinline__
#else
#define MOEBIUS_ANY_SIDE inline
#endif

namespace moebius::kernels {

inline constexpr int kMomentBlock = 256;

namespace moment_codes {

// Bits of a float that a code keeps, and of 1.0f: code = (bits >> 20) - base, with 1.0 as the largest code.
inline constexpr int kShift = 20;
inline constexpr uint32_t kOne = 0x3f800000u >> kShift;
inline constexpr uint32_t kLargestUnsigned = 255, kLargestSigned = 127;
inline constexpr uint32_t kFraction = (1u << kShift) - 1;

MOEBIUS_ANY_SIDE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
MOEBIUS_ANY_SIDE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// x in [0, 1]; `chance`: uniform bits. 0 only for what lies below the least code.
MOEBIUS_ANY_SIDE uint32_t encode(float x, uint32_t largest, uint32_t chance) {
  const uint32_t base = kOne - largest;
  uint32_t rounded = (bits_of(x) + (chance & kFraction)) >> kShift;
  rounded = rounded > kOne ? kOne : rounded;
  return rounded > base ? rounded - base : 0u;
}
MOEBIUS_ANY_SIDE float decode(uint32_t code, uint32_t largest) {
  return code == 0u ? 0.0f : float_of((code + (kOne - largest)) << kShift);
}

}  // namespace moment_codes

// m / scale in [-1, 1].
MOEBIUS_ANY_SIDE uint8_t encode_first_moment(float x, uint32_t chance) {
  const uint32_t bits = moment_codes::bits_of(x), magnitude = bits & 0x7fffffffu;
  const uint32_t code =
      moment_codes::encode(moment_codes::float_of(magnitude), moment_codes::kLargestSigned, chance);
  return static_cast<uint8_t>(code | ((bits >> 31) << 7));
}
MOEBIUS_ANY_SIDE float decode_first_moment(uint8_t code) {
  const float magnitude = moment_codes::decode(code & 127u, moment_codes::kLargestSigned);
  return (code & 128u) != 0u ? -magnitude : magnitude;
}

// v / scale in [0, 1]. What is not zero stays above zero: an update divides by its root.
MOEBIUS_ANY_SIDE uint8_t encode_second_moment(float x, uint32_t chance) {
  const uint32_t code = moment_codes::encode(x, moment_codes::kLargestUnsigned, chance);
  return static_cast<uint8_t>(code == 0u && x > 0.0f ? 1u : code);
}
MOEBIUS_ANY_SIDE float decode_second_moment(uint8_t code) {
  return moment_codes::decode(code, moment_codes::kLargestUnsigned);
}

// Uniform bits for an element of a tensor in a step. (The finaliser of MurmurHash3, Appleby.)
MOEBIUS_ANY_SIDE uint32_t moment_chance(uint32_t step, uint32_t tensor, uint32_t element) {
  uint32_t x = element * 0x9e3779b1u + tensor * 0x85ebca77u + step * 0xc2b2ae3du;
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  x ^= x >> 16;
  return x;
}

}  // namespace moebius::kernels
