// Register tiles in fp32, compiled once per instruction set (Highway's -inl.h convention). See gemm_tile.h.

#include <utility>

#include "kernels/cpu/gemm_tile.h"

#if defined(MOEBIUS_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_GEMM_TILE_INL_H_
#undef MOEBIUS_GEMM_TILE_INL_H_
#else
#define MOEBIUS_GEMM_TILE_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

// Two vectors of C per row; as many rows as leave registers for two vectors of B and one broadcast of A.
inline constexpr int kTileCols = 2 * static_cast<int>(hn::MaxLanes(FloatTag()));
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kTileRows = 14;
#else
inline constexpr int kTileRows = 6;
#endif

// Rounds to nearest even; NaN stays NaN.
HWY_INLINE void store_bf16(FloatVec v, uint16_t* p) {
  const FloatTag df;
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(hn::Set(du, 0x7FFFu), odd)));
  const auto nan = hn::RebindMask(du, hn::IsNaN(v));
  const auto result = hn::IfThenElse(nan, hn::Set(du, 0x7FC0u), rounded);
  (void)df;
  hn::StoreU(hn::DemoteTo(hn::Rebind<uint16_t, FloatTag>(), hn::BitCast(di, result)),
             hn::Rebind<uint16_t, FloatTag>(), p);
}

HWY_INLINE FloatVec load_bf16(const uint16_t* p) {
  const hn::RebindToUnsigned<FloatTag> du;
  return hn::BitCast(FloatTag(),
                     hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(hn::Rebind<uint16_t, FloatTag>(), p))));
}

HWY_INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

HWY_INLINE float from_bf16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

// Writes `cols` values to row `r` of C.
HWY_INLINE void store_values(const float* values, int64_t cols, const TileArgs& t, int64_t r) {
  float* f = static_cast<float*>(t.c) + r * t.c_stride;
  uint16_t* h = static_cast<uint16_t*>(t.c) + r * t.c_stride;
  for (int64_t j = 0; j < cols; ++j) {
    switch (t.store) {
      case TileStore::f32:
        f[j] = values[j];
        break;
      case TileStore::f32_add:
        f[j] += values[j];
        break;
      case TileStore::bf16:
        h[j] = to_bf16(values[j]);
        break;
      case TileStore::bf16_add:
        h[j] = to_bf16(from_bf16(h[j]) + values[j]);
        break;
    }
  }
}

HWY_INLINE void store_row(FloatVec v0, FloatVec v1, const TileArgs& t, int64_t r) {
  const FloatTag d;
  constexpr int64_t kLanes = kTileCols / 2;
  if (t.cols < kTileCols) {
    HWY_ALIGN float values[kTileCols];
    hn::Store(v0, d, values);
    hn::Store(v1, d, values + kLanes);
    store_values(values, t.cols, t, r);
    return;
  }
  float* f = static_cast<float*>(t.c) + r * t.c_stride;
  uint16_t* h = static_cast<uint16_t*>(t.c) + r * t.c_stride;
  switch (t.store) {
    case TileStore::f32:
      hn::StoreU(v0, d, f);
      hn::StoreU(v1, d, f + kLanes);
      break;
    case TileStore::f32_add:
      hn::StoreU(hn::Add(v0, hn::LoadU(d, f)), d, f);
      hn::StoreU(hn::Add(v1, hn::LoadU(d, f + kLanes)), d, f + kLanes);
      break;
    case TileStore::bf16:
      store_bf16(v0, h);
      store_bf16(v1, h + kLanes);
      break;
    case TileStore::bf16_add:
      store_bf16(hn::Add(v0, load_bf16(h)), h);
      store_bf16(hn::Add(v1, load_bf16(h + kLanes)), h + kLanes);
      break;
  }
}

HWY_INLINE void multiply_add(FloatVec a, FloatVec b0, FloatVec b1, FloatVec& c0, FloatVec& c1) {
  c0 = hn::MulAdd(a, b0, c0);
  c1 = hn::MulAdd(a, b1, c1);
}

// Folds over the rows instead of loops, so that every accumulator is a register at any optimisation level.
template <int64_t row_stride, int64_t word_stride, size_t... rows>
HWY_INLINE void tile(const TileArgs& t, std::index_sequence<rows...>) {
  const FloatTag d;
  FloatVec c0[sizeof...(rows)] = {((void)rows, hn::Zero(d))...};
  FloatVec c1[sizeof...(rows)] = {((void)rows, hn::Zero(d))...};
  const float* a = t.a;
  const float* b = t.b;
  for (int64_t w = 0; w < t.num_words; ++w, a += word_stride, b += kTileCols) {
    const FloatVec b0 = hn::Load(d, b), b1 = hn::Load(d, b + kTileCols / 2);
    (multiply_add(hn::Set(d, a[rows * row_stride]), b0, b1, c0[rows], c1[rows]), ...);
  }
  (store_row(c0[rows], c1[rows], t, rows), ...);
}

template <int num_rows>
HWY_NOINLINE void tile_by_row(const TileArgs& t) {
  tile<kPanelStride, 1>(t, std::make_index_sequence<num_rows>());
}

template <int num_rows>
HWY_NOINLINE void tile_by_k(const TileArgs& t) {
  tile<1, kTileRows>(t, std::make_index_sequence<num_rows>());
}

template <size_t... rows>
HWY_INLINE TileTable make_tiles(std::index_sequence<rows...>) {
  return {{nullptr, tile_by_row<static_cast<int>(rows) + 1>...},
          {nullptr, tile_by_k<static_cast<int>(rows) + 1>...}};
}

inline const TileTable& f32_tiles() {
  static const TileTable table = make_tiles(std::make_index_sequence<kTileRows>());
  return table;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
