// Vector helpers shared by the Highway sources: fp32 arithmetic on fp32 or bf16 memory, tails, sums,
// exponential. Included once per instruction set (Highway's -inl convention). No function here may be called
// outside the namespace of its instruction set.
#include <hwy/highway.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/bf16.h"

#if defined(MOEBIUS_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_KERNELS_CPU_SIMD_INL_H_
#undef MOEBIUS_KERNELS_CPU_SIMD_INL_H_
#else
#define MOEBIUS_KERNELS_CPU_SIMD_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using U16 = hn::Rebind<uint16_t, F32>;
using I32 = hn::RebindToSigned<F32>;
using Vf = hn::Vec<F32>;
using Vu = hn::Vec<U32>;

HWY_INLINE int64_t lanes() {
  return static_cast<int64_t>(hn::Lanes(F32()));
}
// Elements of whole vectors in n.
HWY_INLINE int64_t whole(int64_t n) {
  return n / lanes() * lanes();
}

// ---- bf16 <-> fp32

// Round to nearest even in the upper 16 bits; the lower ones are rubbish. NaN stays NaN.
HWY_INLINE Vu bf16_in_upper_half(Vf v) {
  const U32 du;
  const Vu bits = hn::BitCast(du, v);
  const Vu odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const Vu rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF)));
  const Vu quiet = hn::Or(bits, hn::Set(du, 0x00400000));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
}
HWY_INLINE Vf from_upper_half(Vu bits) {
  return hn::BitCast(F32(), hn::And(bits, hn::Set(U32(), 0xFFFF0000u)));
}
HWY_INLINE Vf from_lower_half(Vu bits) {
  return hn::BitCast(F32(), hn::ShiftLeft<16>(bits));
}

// ---- whole vectors

HWY_INLINE Vf load(const float* p) {
  return hn::LoadU(F32(), p);
}
HWY_INLINE Vf load(const Bf16* p) {
  const auto half = hn::LoadU(U16(), reinterpret_cast<const uint16_t*>(p));
  return from_lower_half(hn::PromoteTo(U32(), half));
}
HWY_INLINE void store(Vf v, float* p) {
  hn::StoreU(v, F32(), p);
}
HWY_INLINE void store(Vf v, Bf16* p) {
  const Vu upper = hn::ShiftRight<16>(bf16_in_upper_half(v));
  hn::StoreU(hn::TruncateTo(U16(), upper), U16(), reinterpret_cast<uint16_t*>(p));
}
// The value that `store` leaves in memory.
HWY_INLINE Vf as_stored(Vf v, const float*) {
  return v;
}
HWY_INLINE Vf as_stored(Vf v, const Bf16*) {
  return from_upper_half(bf16_in_upper_half(v));
}

// ---- the first n lanes, 0 < n < lanes(); the others read as zero and are not written

// n, in a form from which the compiler sees that it is below the number of lanes.
HWY_INLINE size_t tail_size(int64_t n) {
  return static_cast<size_t>(n) & (hn::MaxLanes(F32()) - 1);
}

HWY_INLINE Vf load_n(const float* p, int64_t n) {
#if HWY_TARGET <= HWY_AVX3  // masked accesses do not touch what is masked out
  return hn::MaskedLoad(hn::FirstN(F32(), static_cast<size_t>(n)), F32(), p);
#else
  HWY_ALIGN float buffer[hn::MaxLanes(F32())] = {};
  std::memcpy(buffer, p, tail_size(n) * sizeof(float));
  return hn::Load(F32(), buffer);
#endif
}
HWY_INLINE void store_n(Vf v, float* p, int64_t n) {
#if HWY_TARGET <= HWY_AVX3
  hn::BlendedStore(v, hn::FirstN(F32(), static_cast<size_t>(n)), F32(), p);
#else
  HWY_ALIGN float buffer[hn::MaxLanes(F32())];
  hn::Store(v, F32(), buffer);
  std::memcpy(p, buffer, tail_size(n) * sizeof(float));
#endif
}
HWY_INLINE Vf load_n(const Bf16* p, int64_t n) {
  HWY_ALIGN Bf16 buffer[hn::MaxLanes(F32())] = {};
  std::memcpy(buffer, p, tail_size(n) * sizeof(Bf16));
  return load(buffer);
}
HWY_INLINE void store_n(Vf v, Bf16* p, int64_t n) {
  HWY_ALIGN Bf16 buffer[hn::MaxLanes(F32())];
  store(v, buffer);
  std::memcpy(p, buffer, tail_size(n) * sizeof(Bf16));
}

// One vector's worth of a row, whole or not: what most loops below are written with. `n` is what is left of
// the row.
struct Part {
  int64_t n;
  HWY_INLINE explicit Part(int64_t left) : n(left < lanes() ? left : lanes()) {}
  HWY_INLINE bool is_whole() const { return n == lanes(); }
  template <class T>
  HWY_INLINE Vf load(const T* p) const {
    return is_whole() ? HWY_NAMESPACE::load(p) : load_n(p, n);
  }
  template <class T>
  HWY_INLINE void store(Vf v, T* p) const {
    is_whole() ? HWY_NAMESPACE::store(v, p) : store_n(v, p, n);
  }
  // v where there are elements, else `other`.
  HWY_INLINE Vf keep(Vf v, float other) const {
    return is_whole() ? v
                      : hn::IfThenElse(hn::FirstN(F32(), static_cast<size_t>(n)), v, hn::Set(F32(), other));
  }
};

// ---- pairs: even and odd elements of 2 * lanes() consecutive ones

HWY_INLINE void load_pairs(const float* p, Vf& even, Vf& odd) {
  hn::LoadInterleaved2(F32(), p, even, odd);
}
HWY_INLINE void load_pairs(const Bf16* p, Vf& even, Vf& odd) {
  const Vu both = hn::LoadU(U32(), reinterpret_cast<const uint32_t*>(p));
  even = from_lower_half(both);
  odd = from_upper_half(both);
}
HWY_INLINE void store_pairs(Vf even, Vf odd, float* p) {
  hn::StoreInterleaved2(even, odd, F32(), p);
}
HWY_INLINE void store_pairs(Vf even, Vf odd, Bf16* p) {
  const Vu high = hn::And(bf16_in_upper_half(odd), hn::Set(U32(), 0xFFFF0000u));
  const Vu both = hn::Or(hn::ShiftRight<16>(bf16_in_upper_half(even)), high);
  hn::StoreU(both, U32(), reinterpret_cast<uint32_t*>(p));
}
template <class T>
HWY_INLINE void load_pairs_n(const T* p, int64_t n, Vf& even, Vf& odd) {
  HWY_ALIGN T buffer[2 * hn::MaxLanes(F32())] = {};
  std::memcpy(buffer, p, 2 * tail_size(n) * sizeof(T));
  load_pairs(buffer, even, odd);
}
template <class T>
HWY_INLINE void store_pairs_n(Vf even, Vf odd, T* p, int64_t n) {
  HWY_ALIGN T buffer[2 * hn::MaxLanes(F32())];
  store_pairs(even, odd, buffer);
  std::memcpy(p, buffer, 2 * tail_size(n) * sizeof(T));
}

// ---- over lanes

HWY_INLINE float sum_lanes(Vf v) {
  return hn::GetLane(hn::SumOfLanes(F32(), v));
}
HWY_INLINE float max_lanes(Vf v) {
  return hn::GetLane(hn::MaxOfLanes(F32(), v));
}

// ---- exponential

// e^x within 1.5 units in the last place; 0 below the smallest normal result, infinity above the largest, NaN
// stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 split in two so that r is exact; e^r by the polynomial
// of degree 6 that meets it at that interval's Chebyshev nodes (relative error below 2^-25).
HWY_INLINE Vf exp(Vf x) {
  const F32 d;
  const U32 du;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vf magic = hn::Set(d, 12582912.0f);
  const Vf shifted =
      hn::Min(hn::MulAdd(x, hn::Set(d, 1.44269504088896341f), magic), hn::Set(d, 12582912.0f + 127.0f));
  const Vf n = hn::Sub(shifted, magic);
  Vf r = hn::NegMulAdd(n, hn::Set(d, 0.693145751953125f), x);
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860682030941723212e-6f), r);
  Vf p = hn::Set(d, 1.394111889584e-3f);
  p = hn::MulAdd(p, r, hn::Set(d, 8.375134774624e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.166635277111e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.666641541404e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const Vu exponent = hn::ShiftLeft<23>(hn::Add(hn::BitCast(du, shifted), hn::Set(du, 127u)));
  const Vf result = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3365f)), result);
}

// 1 / (1 + e^-x).
HWY_INLINE Vf sigmoid(Vf x) {
  const Vf one = hn::Set(F32(), 1.0f);
  return hn::Div(one, hn::Add(one, exp(hn::Neg(x))));
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
