#include "kernels/cpu/int4_panel.h"

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/int4_panel.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kPanelCols = 32;

void Unpack(const uint8_t* packed, int64_t num_lines, int8_t* codes) {
  using Bytes = hn::CappedTag<uint8_t, 64>;
  const Bytes d;
  const hn::RebindToSigned<Bytes> signed_d;
  const auto low = hn::Set(d, 15), eight = hn::Set(d, 8);
  for (int64_t line = 0; line < num_lines; ++line, packed += 64, codes += 128)
    for (size_t i = 0; i < 64; i += hn::Lanes(d)) {
      const auto both = hn::LoadU(d, packed + i);
      const auto high = hn::ShiftRight<4>(both);
      hn::StoreU(hn::BitCast(signed_d, hn::Sub(hn::And(both, low), eight)), signed_d, codes + i);
      hn::StoreU(hn::BitCast(signed_d, hn::Sub(high, eight)), signed_d, codes + 64 + i);
    }
}

void AddGroup(const Int4AddArgs& t) {
  const I32 d;
  const hn::Rebind<int16_t, I32> half;
  for (int64_t col = 0; col < kPanelCols; col += lanes()) {
    const auto offset = hn::ShiftLeft<7>(hn::PromoteTo(d, hn::LoadU(half, t.code_sums + col)));
    const Vf scale = load(t.col_scales + col);
    for (int64_t r = 0; r < t.num_rows; ++r) {
      Vf v = hn::Zero(F32());
      for (int64_t row = r * t.digits; row < (r + 1) * t.digits; ++row) {
        const auto sum = hn::Sub(hn::LoadU(d, t.sums + row * kPanelCols + col), offset);
        v = hn::MulAdd(hn::ConvertTo(F32(), sum), hn::Set(F32(), t.row_scales[row]), v);
      }
      float* const total = t.total + r * kPanelCols + col;
      store(hn::MulAdd(v, scale, load(total)), total);
    }
  }
}

template <class T>
void store_rows(const Int4StoreArgs& t) {
  for (int64_t col = 0; col < t.cols; col += lanes()) {
    const Part part(t.cols - col);
    const Vf bias = t.bias == nullptr ? hn::Zero(F32()) : part.load(t.bias + col);
    T* out = static_cast<T*>(t.out) + col;
    for (int64_t r = 0; r < t.num_rows; ++r, out += t.out_stride)
      part.store(hn::Add(load(t.total + r * kPanelCols + col), bias), out);
  }
}

void StoreRows(const Int4StoreArgs& t) {
  t.dtype == DType::f32 ? store_rows<float>(t) : store_rows<Bf16>(t);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(Unpack);
HWY_EXPORT(AddGroup);
HWY_EXPORT(StoreRows);

void unpack_int4(const uint8_t* packed, int64_t num_lines, int8_t* codes) {
  HWY_DYNAMIC_DISPATCH(Unpack)(packed, num_lines, codes);
}
void add_int4_group(const Int4AddArgs& args) {
  HWY_DYNAMIC_DISPATCH(AddGroup)(args);
}
void store_int4(const Int4StoreArgs& args) {
  HWY_DYNAMIC_DISPATCH(StoreRows)(args);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
