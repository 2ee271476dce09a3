#include "kernels/cpu/int8_rows.h"

#include <cstring>

#include "base/check.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/int8_rows.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr uint8_t kZeroCode = 128;
constexpr int64_t kTileCols = 32;

// Bits of the largest magnitude. Magnitudes order as the integers of their bits do, with infinity and then
// NaN above every finite one.
template <class T>
uint32_t range_bits(const T* x, int64_t width) {
  const U32 du;
  const Vu magnitude = hn::Set(du, 0x7FFFFFFFu);
  Vu most0 = hn::Zero(du), most1 = hn::Zero(du);
  int64_t i = 0;
  for (; i + 2 * lanes() <= width; i += 2 * lanes()) {
    most0 = hn::Max(most0, hn::And(hn::BitCast(du, load(x + i)), magnitude));
    most1 = hn::Max(most1, hn::And(hn::BitCast(du, load(x + i + lanes())), magnitude));
  }
  for (; i < width; i += lanes())
    most0 = hn::Max(most0, hn::And(hn::BitCast(du, Part(width - i).load(x + i)), magnitude));
  HWY_ALIGN uint32_t each[hn::MaxLanes(U32())];
  hn::Store(hn::Max(most0, most1), du, each);
  uint32_t most = 0;
  for (int64_t lane = 0; lane < lanes(); ++lane) most = HWY_MAX(most, each[lane]);
  return most;
}

using Code = hn::Rebind<uint8_t, I32>;

HWY_INLINE hn::Vec<Code> code_bytes(Vf x, Vf inverse) {
  const F32 d;
  const Vf scaled = hn::Mul(x, inverse);
  const Vf cut = hn::Min(hn::Max(scaled, hn::Set(d, -127.0f)), hn::Set(d, 127.0f));
  return hn::DemoteTo(Code(), hn::Add(hn::NearestInt(cut), hn::Set(I32(), kZeroCode)));
}

template <class T>
void quantise_row(const T* x, int64_t width, float inverse_scale, uint8_t* codes) {
  const Vf inverse = hn::Set(F32(), inverse_scale);
  int64_t i = 0;
  for (; i + lanes() <= width; i += lanes()) hn::StoreU(code_bytes(load(x + i), inverse), Code(), codes + i);
  if (i < width) {
    HWY_ALIGN uint8_t last[hn::MaxLanes(Code())];
    hn::Store(code_bytes(load_n(x + i, width - i), inverse), Code(), last);
    std::memcpy(codes + i, last, tail_size(width - i));
  }
}

// What the codes of a row leave over, under 1 / 254 of its scale: at most half a step, which is 127 of these.
template <class T>
void quantise_rest(const T* x, int64_t width, float scale, float rest_scale, uint8_t* codes) {
  const F32 d;
  const Vf inverse = hn::Set(d, inverse_of_scale(scale)),
           rest_inverse = hn::Set(d, inverse_of_scale(rest_scale));
  const Vf most = hn::Set(d, 127.0f), least = hn::Set(d, -127.0f), step = hn::Set(d, scale);
  for (int64_t i = 0; i < width; i += lanes()) {
    const Part part(width - i);
    const Vf v = part.load(x + i);
    const Vf cut = hn::Min(hn::Max(hn::Mul(v, inverse), least), most);
    const Vf rest = hn::NegMulAdd(hn::ConvertTo(d, hn::NearestInt(cut)), step, v);
    HWY_ALIGN uint8_t bytes[hn::MaxLanes(Code())];
    hn::Store(code_bytes(rest, rest_inverse), Code(), bytes);
    std::memcpy(codes + i, bytes, static_cast<size_t>(part.n));
  }
}

template <class T>
void quantise_rows(const Int8RowsArgs& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    uint8_t* codes = a.codes + r * a.digits * a.codes_stride;
    const int32_t slot = a.index == nullptr ? 0 : a.index[r];
    const int64_t row = a.index == nullptr ? r : slot / a.index_divisor;
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    float range = 0;
    if (slot >= 0) {
      const uint32_t bits = range_bits(x, a.width);
      std::memcpy(&range, &bits, sizeof(range));
    }
    float scale = scale_of_range(range);
    if (a.static_scale != nullptr && slot >= 0 && scale == scale) scale = *a.static_scale;
    a.scales[r * a.digits] = scale;
    const float inverse = inverse_of_scale(scale);
    int64_t done = 0;
    if (inverse > 0) {
      quantise_row(x, a.width, inverse, codes);
      done = a.width;
    }
    std::memset(codes + done, kZeroCode, static_cast<size_t>(a.codes_stride - done));
    if (a.digits == 1) continue;
    const float rest_scale = scale / 254;
    a.scales[r * a.digits + 1] = rest_scale;
    codes += a.codes_stride;
    done = 0;
    if (inverse > 0 && inverse_of_scale(rest_scale) > 0) {
      quantise_rest(x, a.width, scale, rest_scale, codes);
      done = a.width;
    }
    std::memset(codes + done, kZeroCode, static_cast<size_t>(a.codes_stride - done));
  }
}

void Int8Rows(const Int8RowsArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? quantise_rows<float>(a, begin, end) : quantise_rows<Bf16>(a, begin, end);
}

// ---- tiles

// One vector of row r: the sum over its digits, scaled.
HWY_INLINE Vf scaled(const Int8StoreArgs& t, int64_t r, int64_t col, hn::Vec<I32> offset, Vf col_scale) {
  const I32 d;
  Vf v = hn::Zero(F32());
  for (int64_t row = r * t.digits; row < (r + 1) * t.digits; ++row) {
    const auto sum = hn::Sub(hn::LoadU(d, t.sums + row * kTileCols + col), offset);
    v = hn::MulAdd(hn::ConvertTo(F32(), sum), hn::Set(F32(), t.row_scales[row]), v);
  }
  return hn::Mul(v, col_scale);
}

// Two whole vectors of one digit make a row: it is written in one go, from scales in registers.
template <class T>
void store_wide_tile(const Int8StoreArgs& t) {
  const I32 d;
  const auto offset0 = hn::LoadU(d, t.offsets), offset1 = hn::LoadU(d, t.offsets + lanes());
  const Vf scale0 = load(t.col_scales), scale1 = load(t.col_scales + lanes()), zero = hn::Zero(F32());
  const Vf bias0 = t.bias == nullptr ? zero : load(t.bias),
           bias1 = t.bias == nullptr ? zero : load(t.bias + lanes());
  T* out = static_cast<T*>(t.out);
  const int32_t* sums = t.sums;
  for (int64_t r = 0; r < t.num_rows; ++r, out += t.out_stride, sums += kTileCols) {
    const Vf row_scale = hn::Set(F32(), t.row_scales[r]);
    const Vf v0 = hn::Mul(hn::ConvertTo(F32(), hn::Sub(hn::LoadU(d, sums), offset0)), row_scale);
    const Vf v1 = hn::Mul(hn::ConvertTo(F32(), hn::Sub(hn::LoadU(d, sums + lanes()), offset1)), row_scale);
    store(hn::Add(hn::Mul(v0, scale0), bias0), out);
    store(hn::Add(hn::Mul(v1, scale1), bias1), out + lanes());
  }
}

template <class T>
void store_tile(const Int8StoreArgs& t) {
  if (!t.swiglu && t.digits == 1 && t.cols == kTileCols && 2 * lanes() == kTileCols)
    return store_wide_tile<T>(t);
  constexpr int64_t kUp = kTileCols / 2;
  const I32 d;
  for (int64_t col = 0; col < t.cols; col += lanes()) {
    const Part part(t.cols - col);
    const auto offset = hn::LoadU(d, t.offsets + col);
    const Vf scale = load(t.col_scales + col);
    T* out = static_cast<T*>(t.out) + col;
    if (t.swiglu) {
      const auto up_offset = hn::LoadU(d, t.offsets + kUp + col);
      const Vf up_scale = load(t.col_scales + kUp + col);
      for (int64_t r = 0; r < t.num_rows; ++r, out += t.out_stride) {
        const Vf gate = scaled(t, r, col, offset, scale), up = scaled(t, r, kUp + col, up_offset, up_scale);
        part.store(hn::Mul(hn::Mul(gate, sigmoid(gate)), up), out);
      }
    } else {
      const Vf bias = t.bias == nullptr ? hn::Zero(F32()) : part.load(t.bias + col);
      for (int64_t r = 0; r < t.num_rows; ++r, out += t.out_stride)
        part.store(hn::Add(scaled(t, r, col, offset, scale), bias), out);
    }
  }
}

void Int8Store(const Int8StoreArgs& t) {
  t.dtype == DType::f32 ? store_tile<float>(t) : store_tile<Bf16>(t);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(Int8Rows);
HWY_EXPORT(Int8Store);

void int8_rows(const Int8RowsArgs& args, Stream) {
  MOEBIUS_CHECK_GE(args.codes_stride, int8_padded_k(args.width));
  MOEBIUS_CHECK_GE(args.index_divisor, 1);
  MOEBIUS_CHECK(args.digits == 1 || (args.digits == 2 && args.static_scale == nullptr), args.digits,
                " digits");
  parallel_for(0, args.num_rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(Int8Rows)(args, begin, end);
  });
}

void store_int8_tile(const Int8StoreArgs& args) {
  HWY_DYNAMIC_DISPATCH(Int8Store)(args);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
