// Packing of operands into panels of 32-bit words, compiled once per instruction set (Highway's -inl.h
// convention). Right operand: [word along k][kTileCols], columns past the end are zero. Left operand:
// gemm_tile.h says the layouts.

#include <cstring>

#include "kernels/cpu/gemm_tile.h"

#if defined(MOEBIUS_GEMM_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_GEMM_PACK_INL_H_
#undef MOEBIUS_GEMM_PACK_INL_H_
#else
#define MOEBIUS_GEMM_PACK_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using WordTag = hn::ScalableTag<uint32_t>;
// The scalar fallback has no vectors of four.
#if HWY_TARGET == HWY_SCALAR
inline constexpr bool kHasFourWords = false;
using Word4Tag = hn::FixedTag<uint32_t, 1>;
#else
inline constexpr bool kHasFourWords = true;
using Word4Tag = hn::FixedTag<uint32_t, 4>;
#endif

// How elements become words. load<Tag>() reads one word per lane from consecutive elements of one row;
// join<Tag>() makes one word per lane from two rows that follow each other along k (second null: none).
struct F32Words {
  using Element = float;
  static constexpr int64_t kPerWord = 1;
  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const float* p) {
    return hn::BitCast(d, hn::LoadU(hn::Rebind<float, D>(), p));
  }
  template <class D>
  static HWY_INLINE hn::Vec<D> join(D d, const float* p, const float*) {
    return load(d, p);
  }
  static HWY_INLINE uint32_t word(const float* p, int64_t) {
    uint32_t bits;
    std::memcpy(&bits, p, 4);
    return bits;
  }
  static HWY_INLINE uint32_t join_word(const float* p, const float*) { return word(p, 1); }
};

// bf16 widened to fp32, for processors without a bf16 product.
struct WidenedWords {
  using Element = uint16_t;
  static constexpr int64_t kPerWord = 1;
  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const uint16_t* p) {
    return hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint16_t, D>(), p)));
  }
  template <class D>
  static HWY_INLINE hn::Vec<D> join(D d, const uint16_t* p, const uint16_t*) {
    return load(d, p);
  }
  static HWY_INLINE uint32_t word(const uint16_t* p, int64_t) { return static_cast<uint32_t>(*p) << 16; }
  static HWY_INLINE uint32_t join_word(const uint16_t* p, const uint16_t*) { return word(p, 1); }
};

// Two bf16 values along k in one word; the second is zero past the end.
struct PairWords {
  using Element = uint16_t;
  static constexpr int64_t kPerWord = 2;
  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const uint16_t* p) {
    return hn::BitCast(d, hn::LoadU(hn::Repartition<uint16_t, D>(), p));
  }
  template <class D>
  static HWY_INLINE hn::Vec<D> join(D d, const uint16_t* p, const uint16_t* q) {
    const hn::Rebind<uint16_t, D> half;
    const auto low = hn::PromoteTo(d, hn::LoadU(half, p));
    if (q == nullptr) return low;
    return hn::Or(low, hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(half, q))));
  }
  static HWY_INLINE uint32_t word(const uint16_t* p, int64_t left) {
    return p[0] | (left > 1 ? static_cast<uint32_t>(p[1]) << 16 : 0u);
  }
  static HWY_INLINE uint32_t join_word(const uint16_t* p, const uint16_t* q) {
    return *p | (q != nullptr ? static_cast<uint32_t>(*q) << 16 : 0u);
  }
};

HWY_INLINE void put_word(float* dst, uint32_t bits) {
  std::memcpy(dst, &bits, 4);
}
HWY_INLINE uint32_t* words_of(float* p) {
  return reinterpret_cast<uint32_t*>(p);
}

// One row of k elements, as words, at dst.
template <class Words>
HWY_INLINE void pack_row(const typename Words::Element* src, int64_t k, float* dst) {
  const WordTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t whole = k / Words::kPerWord;
  int64_t w = 0;
  for (; w + lanes <= whole; w += lanes)
    hn::StoreU(Words::load(d, src + w * Words::kPerWord), d, words_of(dst + w));
  for (int64_t i = w * Words::kPerWord; i < k; i += Words::kPerWord, ++w)
    put_word(dst + w, Words::word(src + i, k - i));
}

// rows[0..3] x 4 words transposed to 4 x rows[0..3], at dst with the given stride.
template <class Words>
HWY_INLINE void transpose_4x4(const typename Words::Element* const* rows, int64_t offset, float* dst,
                              int64_t stride) {
#if HWY_TARGET == HWY_SCALAR
  (void)rows, (void)offset, (void)dst, (void)stride;
#else
  const Word4Tag d;
  const hn::Repartition<uint64_t, Word4Tag> d64;
  const auto r0 = Words::load(d, rows[0] + offset), r1 = Words::load(d, rows[1] + offset);
  const auto r2 = Words::load(d, rows[2] + offset), r3 = Words::load(d, rows[3] + offset);
  const auto a = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1)),
             b = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
  const auto c = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1)),
             e = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, a, b)), d, words_of(dst));
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, a, b)), d, words_of(dst + stride));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, c, e)), d, words_of(dst + 2 * stride));
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, c, e)), d, words_of(dst + 3 * stride));
#endif
}

// num_rows <= width rows of k elements become columns of a [words][width] panel.
template <class Words>
HWY_INLINE void pack_transposed(const typename Words::Element* const* rows, int64_t num_rows, int64_t k,
                                int64_t width, float* panel) {
  constexpr int64_t kChunk = 64;  // words along k whose panel lines stay in the first-level cache
  const int64_t whole = k / Words::kPerWord, num_words = (k + Words::kPerWord - 1) / Words::kPerWord;
  for (int64_t first = 0; first < num_words; first += kChunk) {
    const int64_t last = HWY_MIN(first + kChunk, num_words);
    int64_t n = 0;
    for (; n + 4 <= num_rows; n += 4) {
      int64_t w = first;
      for (; kHasFourWords && w + 4 <= HWY_MIN(last, whole); w += 4)
        transpose_4x4<Words>(rows + n, w * Words::kPerWord, panel + w * width + n, width);
      for (; w < last; ++w)
        for (int64_t i = n; i < n + 4; ++i)
          put_word(panel + w * width + i,
                   Words::word(rows[i] + w * Words::kPerWord, k - w * Words::kPerWord));
    }
    for (int64_t w = first; w < last; ++w) {
      for (int64_t i = n; i < num_rows; ++i)
        put_word(panel + w * width + i, Words::word(rows[i] + w * Words::kPerWord, k - w * Words::kPerWord));
      for (int64_t i = num_rows; i < width; ++i) panel[w * width + i] = 0.0f;
    }
  }
}

// From k rows, the num_cols <= width columns that start at `col` become a [words][width] panel. Of a row, the
// elements before `row_end` may be read. Columns past num_cols are zero, unless `slack` is set: then they may
// hold anything, and up to a vector past the last word of the panel may be written.
template <class Words, int width, bool slack>
HWY_INLINE void pack_columns(const typename Words::Element* const* rows, int64_t k, int64_t col,
                             int64_t num_cols, int64_t row_end, float* panel) {
  const WordTag d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(WordTag()));
  constexpr int kPadded = (width + kLanes - 1) / kLanes * kLanes;
  const typename Words::Element* const none = nullptr;
  const bool last_is_alone = k % Words::kPerWord != 0;
  const int64_t whole = k - k % Words::kPerWord;
  if (col + kPadded <= (slack ? row_end : col + num_cols)) {
    for (int64_t i = 0; i < whole; i += Words::kPerWord, panel += width)
      for (int j = 0; j < kPadded; j += kLanes)
        hn::StoreU(Words::join(d, rows[i] + col + j, rows[i + Words::kPerWord - 1] + col + j), d,
                   words_of(panel + j));
    for (int j = 0; last_is_alone && j < kPadded; j += kLanes)
      hn::StoreU(Words::join(d, rows[whole] + col + j, none), d, words_of(panel + j));
    return;
  }
  for (int64_t i = 0; i < k; i += Words::kPerWord, panel += width) {
    const auto* p = rows[i] + col;
    const auto* q = i < whole ? rows[i + Words::kPerWord - 1] + col : none;
    for (int64_t j = 0; j < num_cols; ++j)
      put_word(panel + j, Words::join_word(p + j, q == none ? none : q + j));
    if (!slack)
      for (int64_t j = num_cols; j < width; ++j) panel[j] = 0.0f;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
