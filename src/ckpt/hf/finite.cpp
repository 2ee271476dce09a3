#include "ckpt/hf/finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/check.h"

namespace moebius::ckpt::hf {
namespace {

// A value is not finite when all bits of its exponent are set: when, without its sign and read as an integer,
// it is at least as large as infinity. In blocks, so that each is copied to an aligned place (tensors in a
// file need not be) and loops have a known length.
template <class Int>
bool all_below(std::span<const std::byte> bytes, Int infinity) {
  constexpr size_t kBlock = 8192 / sizeof(Int);
  constexpr Int kNoSign = static_cast<Int>(~(Int{1} << (8 * sizeof(Int) - 1)));
  alignas(64) Int block[kBlock];
  Int largest = 0;
  for (size_t at = 0; at < bytes.size(); at += sizeof block) {
    const size_t count = std::min(bytes.size() - at, sizeof block) / sizeof(Int);
    std::memcpy(block, bytes.data() + at, count * sizeof(Int));
#pragma omp simd reduction(max : largest)
    for (size_t i = 0; i < count; ++i) {
      const Int value = static_cast<Int>(block[i] & kNoSign);
      largest = value > largest ? value : largest;
    }
  }
  return largest < infinity;
}

}  // namespace

bool all_finite(DType dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case DType::bf16:
      return all_below<int16_t>(bytes, 0x7F80);
    case DType::f16:
      return all_below<int16_t>(bytes, 0x7C00);
    case DType::f32:
      return all_below<int32_t>(bytes, 0x7F800000);
    case DType::f64:
      return all_below<int64_t>(bytes, 0x7FF0000000000000);
    default:
      MOEBIUS_CHECK(false, dtype_name(dtype), " is not a floating-point type");
  }
}

}  // namespace moebius::ckpt::hf
