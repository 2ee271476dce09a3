#include "kernels/cpu/int8_tile.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/int8_tile.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kTileCols = 32, kWordBytes = 4 * kTileCols;

#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR

// Codes widened to 16 bits: products of pairs along k are summed in 32 bits by one instruction, without the
// saturation of its 8-bit sibling. A 32-bit lane holds half of a column's sum.
using Wide = hn::ScalableTag<int16_t>;
using Sum = hn::Repartition<int32_t, Wide>;
using Byte = hn::Rebind<uint8_t, Wide>;
using SignedByte = hn::Rebind<int8_t, Wide>;
using SumVec = hn::Vec<Sum>;

constexpr int64_t kVecCols = static_cast<int64_t>(hn::MaxLanes(Wide())) / 4;
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 14 : 6;

HWY_INLINE void multiply_add(const uint8_t* a, hn::Vec<Wide> b0, hn::Vec<Wide> b1, SumVec& c0, SumVec& c1) {
  uint32_t word;
  std::memcpy(&word, a, sizeof(word));
  const auto four = hn::Set(hn::Repartition<uint32_t, Byte>(), word);
  const auto v = hn::PromoteTo(Wide(), hn::BitCast(Byte(), four));
  SumVec none = hn::Zero(Sum());  // x86 adds everything to the first
  c0 = hn::ReorderWidenMulAccumulate(Sum(), v, b0, c0, none);
  c1 = hn::ReorderWidenMulAccumulate(Sum(), v, b1, c1, none);
}

HWY_INLINE void store(const Int8TileArgs& t, int64_t offset, SumVec v) {
  HWY_ALIGN int32_t halves[2 * kVecCols];
  hn::Store(v, Sum(), halves);
  int32_t* c = t.c + offset;
  for (int64_t i = 0; i < kVecCols; ++i) {
    const uint32_t sum = static_cast<uint32_t>(halves[2 * i]) + static_cast<uint32_t>(halves[2 * i + 1]);
    c[i] = static_cast<int32_t>(sum + (t.add ? static_cast<uint32_t>(c[i]) : 0u));
  }
}

template <size_t... rows>
HWY_INLINE void tile(const Int8TileArgs& t, std::index_sequence<rows...>) {
  for (int64_t col = 0; col < kTileCols; col += 2 * kVecCols) {
    SumVec c0[sizeof...(rows)] = {((void)rows, hn::Zero(Sum()))...};
    SumVec c1[sizeof...(rows)] = {((void)rows, hn::Zero(Sum()))...};
    const uint8_t* a = t.a;
    const int8_t* b = t.b + 4 * col;
    for (int64_t w = 0; w < t.num_words; ++w, a += 4, b += kWordBytes) {
      const auto b0 = hn::PromoteTo(Wide(), hn::LoadU(SignedByte(), b)),
                 b1 = hn::PromoteTo(Wide(), hn::LoadU(SignedByte(), b + 4 * kVecCols));
      (multiply_add(a + static_cast<int64_t>(rows) * kInt8RowStride, b0, b1, c0[rows], c1[rows]), ...);
    }
    ((store(t, static_cast<int64_t>(rows) * kTileCols + col, c0[rows]),
      store(t, static_cast<int64_t>(rows) * kTileCols + col + kVecCols, c1[rows])),
     ...);
  }
}

#else

constexpr int kRows = 4;

template <size_t... rows>
void tile(const Int8TileArgs& t, std::index_sequence<rows...>) {
  for (size_t r = 0; r < sizeof...(rows); ++r) {
    uint32_t sums[kTileCols] = {};
    for (int64_t w = 0; w < t.num_words; ++w)
      for (int64_t i = 0; i < 4; ++i) {
        const int32_t a = t.a[static_cast<int64_t>(r) * kInt8RowStride + 4 * w + i];
        for (int64_t j = 0; j < kTileCols; ++j)
          sums[j] += static_cast<uint32_t>(a * t.b[w * kWordBytes + 4 * j + i]);
      }
    int32_t* c = t.c + static_cast<int64_t>(r) * kTileCols;
    for (int64_t j = 0; j < kTileCols; ++j)
      c[j] = static_cast<int32_t>(sums[j] + (t.add ? static_cast<uint32_t>(c[j]) : 0u));
  }
}

#endif

template <int num_rows>
HWY_NOINLINE void tile_of(const Int8TileArgs& t) {
  tile(t, std::make_index_sequence<num_rows>());
}

template <size_t... rows>
Int8TileTable table_of(std::index_sequence<rows...>) {
  return {hwy::TargetName(HWY_TARGET), kRows, {nullptr, tile_of<static_cast<int>(rows) + 1>...}};
}

const Int8TileTable& Tiles() {
  static const Int8TileTable table = table_of(std::make_index_sequence<kRows>());
  return table;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {
namespace {

std::atomic<const Int8TileTable*> chosen{nullptr};

}  // namespace

HWY_EXPORT(Tiles);

const Int8TileTable& portable_int8_tiles() {
  return HWY_DYNAMIC_DISPATCH(Tiles)();
}

const Int8TileTable& int8_tiles() {
  if (const Int8TileTable* const table = chosen.load(std::memory_order_relaxed)) return *table;
  if (const Int8TileTable* const table = amx_int8_tiles()) return *table;
  if (const Int8TileTable* const table = avx512_vnni_tiles()) return *table;
  if (const Int8TileTable* const table = avx_vnni_tiles()) return *table;
  return portable_int8_tiles();
}

void set_int8_tiles(const Int8TileTable* table) {
  chosen.store(table, std::memory_order_relaxed);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
