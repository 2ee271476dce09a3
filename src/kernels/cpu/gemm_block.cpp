#include "kernels/cpu/gemm_block.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/fetch_ahead.h"
#include "kernels/cpu/gemm_amx.h"
#include "kernels/cpu/gemm_tile.h"
#include "kernels/cpu/scratch.h"

// Built for the baseline, AVX2 and AVX-512 (NEON on Arm): what lies between makes no difference to these
// loops.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_block.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/gemm_pack-inl.h"
#include "kernels/cpu/gemm_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// Panels of a by_k left operand that are packed together, so that whole cache lines of its rows are read.
constexpr int64_t kPanelsAtOnce = 8;
constexpr int64_t kRowsAtOnce = 32;

// Only where the tiles of gemm_tile.h's AVX512-BF16 table have this target's geometry.
constexpr bool kPairsFit = kTileRows == 14 && kTileCols == 32;

bool use_pairs(DType dtype) {
  return kPairsFit && dtype == DType::bf16 && has_fast_avx512_bf16();
}

GemmGeometry Geometry(DType dtype) {
  if (dtype == DType::bf16 && amx_is_used()) return {kAmxRows, kAmxCols, kAmxMaxWords, 2, "AMX-BF16"};
  const bool pairs = use_pairs(dtype);
  return {kTileRows, kTileCols, kMaxWords, pairs ? 2 : 1, pairs ? "AVX3+BF16" : hwy::TargetName(HWY_TARGET)};
}

template <class Element>
const Element* row_of(const GemmOperand& operand, int64_t r) {
  const int64_t row = operand.index == nullptr ? r : operand.index[r] / operand.divisor;
  return static_cast<const Element*>(operand.data) + row * operand.stride;
}

// Asks for what a stream through `count` elements a step will read.
template <class Element>
HWY_INLINE void fetch_ahead(const Element* from, int64_t count) {
  constexpr int64_t kLine = 64;
  const char* const bytes = reinterpret_cast<const char*>(from);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(Element)); i += kLine) {
    __builtin_prefetch(bytes + i + kFarAhead, 0, 2);
    __builtin_prefetch(bytes + i + kNearAhead, 0, 3);
  }
}

// out rows of `block` = skinny rows times rows of B, by dot products: B is read once, straight from memory.
template <class Words, int num_rows>
HWY_NOINLINE void skinny(const GemmBlock& block, const float* a, int64_t a_stride) {
  static_assert(Words::kPerWord == 1);
  using Element = typename Words::Element;
  const WordTag dw;
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t whole = block.k / lanes * lanes;
  for (int64_t n = 0; n < block.n; ++n) {
    const Element* b = row_of<Element>(block.b, n);
    FloatVec even[num_rows], odd[num_rows];
    for (int r = 0; r < num_rows; ++r) even[r] = odd[r] = hn::Zero(d);
    int64_t i = 0;
    for (; i + 2 * lanes <= whole; i += 2 * lanes) {
      fetch_ahead(b + i, 2 * lanes);
      const FloatVec b0 = hn::BitCast(d, Words::load(dw, b + i)),
                     b1 = hn::BitCast(d, Words::load(dw, b + i + lanes));
      for (int r = 0; r < num_rows; ++r) {
        even[r] = hn::MulAdd(b0, hn::LoadU(d, a + r * a_stride + i), even[r]);
        odd[r] = hn::MulAdd(b1, hn::LoadU(d, a + r * a_stride + i + lanes), odd[r]);
      }
    }
    if (i < whole) {
      const FloatVec b0 = hn::BitCast(d, Words::load(dw, b + i));
      for (int r = 0; r < num_rows; ++r)
        even[r] = hn::MulAdd(b0, hn::LoadU(d, a + r * a_stride + i), even[r]);
    }
    for (int r = 0; r < num_rows; ++r) {
      float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even[r], odd[r])));
      for (int64_t j = whole; j < block.k; ++j) {
        const uint32_t bits = Words::word(b + j, 1);
        float value;
        std::memcpy(&value, &bits, 4);
        sum += value * a[r * a_stride + j];
      }
      const bool f32 = block.out_dtype == DType::f32;
      TileArgs t{};
      t.c = f32 ? static_cast<void*>(static_cast<float*>(block.out) + n)
                : static_cast<void*>(static_cast<uint16_t*>(block.out) + n);
      t.c_stride = block.out_stride;
      t.store = f32 ? (block.accumulate ? TileStore::f32_add : TileStore::f32)
                    : (block.accumulate ? TileStore::bf16_add : TileStore::bf16);
      store_values(&sum, 1, t, r);
    }
  }
}

template <class Words>
void run_skinny(const GemmBlock& block) {
  thread_local Scratch scratch;
  float* a = scratch.floats(block.m * block.k);
  for (int64_t r = 0; r < block.m; ++r)
    pack_row<Words>(row_of<typename Words::Element>(block.a, r), block.k, a + r * block.k);
  switch (block.m) {
    case 1:
      return skinny<Words, 1>(block, a, block.k);
    case 2:
      return skinny<Words, 2>(block, a, block.k);
    case 3:
      return skinny<Words, 3>(block, a, block.k);
    default:
      return skinny<Words, 4>(block, a, block.k);
  }
}

// State of one block's product over one stretch of k.
template <class Words>
class BlockProduct {
 public:
  using Element = typename Words::Element;

  BlockProduct(const GemmBlock& block, const TileTable& tiles) : block_(block), tiles_(tiles) {}

  void run() {
    thread_local Scratch a_scratch, b_scratch, c_scratch;
    thread_local std::vector<const Element*> rows;
    const int64_t num_words = (block_.k + Words::kPerWord - 1) / Words::kPerWord;
    const int64_t num_stretches = std::max<int64_t>(1, (num_words + kMaxWords - 1) / kMaxWords);
    const int64_t stretch = (num_words + num_stretches - 1) / num_stretches;
    num_col_panels_ = (block_.n + kTileCols - 1) / kTileCols;
    num_row_panels_ = (block_.m + kTileRows - 1) / kTileRows;
    a_panels_ = a_scratch.floats(
        std::max(kPanelStride * kTileRows, kPanelsAtOnce * (stretch * kTileRows + kTileCols)));
    b_panels_ = b_scratch.floats(num_col_panels_ * kTileCols * std::max<int64_t>(stretch, 1));
    // A bf16 result that needs several stretches is summed in fp32 first.
    const bool staged = num_stretches > 1 && block_.out_dtype == DType::bf16;
    if (staged) c_scratch.floats(block_.m * block_.n);

    for (int64_t s = 0; s < num_stretches; ++s) {
      const int64_t first = s * stretch * Words::kPerWord;
      k_ = std::max<int64_t>(0, std::min(block_.k - first, stretch * Words::kPerWord));
      words_ = (k_ + Words::kPerWord - 1) / Words::kPerWord;
      const bool add = s > 0 || (block_.accumulate && !staged);
      out_ = staged ? static_cast<void*>(c_scratch.floats(0)) : block_.out;
      out_stride_ = staged ? block_.n : block_.out_stride;
      out_is_f32_ = staged || block_.out_dtype == DType::f32;
      store_ = out_is_f32_ ? (add ? TileStore::f32_add : TileStore::f32)
                           : (add ? TileStore::bf16_add : TileStore::bf16);
      pack_b(first, rows);
      if (block_.a_rows_are_k) {
        multiply_by_k(first, rows);
      } else {
        multiply_by_row(first);
      }
    }
    if (staged) finish(c_scratch.floats(0));
  }

 private:
  void find_rows(const GemmOperand& operand, int64_t first, int64_t count,
                 std::vector<const Element*>& rows) {
    rows.resize(static_cast<size_t>(count));
    for (int64_t r = 0; r < count; ++r) rows[static_cast<size_t>(r)] = row_of<Element>(operand, first + r);
  }

  void pack_b(int64_t first, std::vector<const Element*>& rows) {
    const int64_t panel_size = words_ * kTileCols;
    if (block_.b_rows_are_k) {
      find_rows(block_.b, first, k_, rows);
      for (int64_t i = 0; i < k_; i += kRowsAtOnce) {
        for (int64_t p = 0; p < num_col_panels_; ++p) {
          const int64_t col = p * kTileCols;
          pack_columns<Words, kTileCols, false>(rows.data() + i, std::min(kRowsAtOnce, k_ - i), col,
                                                std::min<int64_t>(kTileCols, block_.n - col), block_.n,
                                                b_panels_ + p * panel_size + i / Words::kPerWord * kTileCols);
        }
      }
      return;
    }
    for (int64_t p = 0; p < num_col_panels_; ++p) {
      const Element* panel_rows[kTileCols];
      const int64_t count = std::min<int64_t>(kTileCols, block_.n - p * kTileCols);
      for (int64_t i = 0; i < count; ++i)
        panel_rows[i] = row_of<Element>(block_.b, p * kTileCols + i) + first;
      pack_transposed<Words>(panel_rows, count, k_, kTileCols, b_panels_ + p * panel_size);
    }
  }

  // Rows are spread evenly over the row panels: tiles of 13 and 12 rows run faster than one of 14 and one
  // of 11.
  int64_t panel_begin(int64_t panel) const { return panel * block_.m / num_row_panels_; }

  void multiply_by_row(int64_t first) {
    for (int64_t p = 0; p < num_row_panels_; ++p) {
      const int64_t begin = panel_begin(p), count = panel_begin(p + 1) - begin;
      for (int64_t r = 0; r < count; ++r)
        pack_row<Words>(row_of<Element>(block_.a, begin + r) + first, k_, a_panels_ + r * kPanelStride);
      multiply_panel(tiles_.by_row[count], a_panels_, begin);
    }
  }

  void multiply_by_k(int64_t first, std::vector<const Element*>& rows) {
    find_rows(block_.a, first, k_, rows);
    for (int64_t p = 0; p < num_row_panels_; p += kPanelsAtOnce) {
      const int64_t last = std::min(p + kPanelsAtOnce, num_row_panels_);
      const int64_t panel_size = words_ * kTileRows + kTileCols;
      for (int64_t i = 0; i < k_; i += kRowsAtOnce) {
        prefetch(rows, i + kRowsAtOnce, panel_begin(p), panel_begin(last));
        for (int64_t q = p; q < last; ++q) {
          const int64_t begin = panel_begin(q);
          float* panel = a_panels_ + (q - p) * panel_size + i / Words::kPerWord * kTileRows;
          pack_columns<Words, kTileRows, true>(rows.data() + i, std::min(kRowsAtOnce, k_ - i), begin,
                                               panel_begin(q + 1) - begin, block_.m, panel);
        }
      }
      for (int64_t q = p; q < last; ++q) {
        const int64_t begin = panel_begin(q);
        multiply_panel(tiles_.by_k[panel_begin(q + 1) - begin], a_panels_ + (q - p) * panel_size, begin);
      }
    }
  }

  // The next rows to be packed: strides of a whole row are too long for the processor to foresee.
  void prefetch(const std::vector<const Element*>& rows, int64_t first, int64_t col_begin,
                int64_t col_end) const {
    for (int64_t r = first; r < std::min(k_, first + kRowsAtOnce); ++r)
      for (int64_t c = col_begin; c < col_end; c += 64 / static_cast<int64_t>(sizeof(Element)))
        __builtin_prefetch(rows[static_cast<size_t>(r)] + c);
  }

  void multiply_panel(TileFn tile, const float* a, int64_t row) {
    TileArgs t{a, b_panels_, words_, nullptr, out_stride_, kTileCols, store_};
    for (int64_t p = 0; p < num_col_panels_; ++p, t.b += words_ * kTileCols) {
      const int64_t offset = row * out_stride_ + p * kTileCols;
      t.c = out_is_f32_ ? static_cast<void*>(static_cast<float*>(out_) + offset)
                        : static_cast<void*>(static_cast<uint16_t*>(out_) + offset);
      t.cols = std::min<int64_t>(kTileCols, block_.n - p * kTileCols);
      tile(t);
    }
  }

  void finish(const float* sums) {
    TileArgs t{};
    t.c = block_.out;
    t.c_stride = block_.out_stride;
    t.store = block_.accumulate ? TileStore::bf16_add : TileStore::bf16;
    const FloatTag d;
    for (int64_t r = 0; r < block_.m; ++r) {
      uint16_t* row = static_cast<uint16_t*>(block_.out) + r * block_.out_stride;
      for (int64_t c = 0; c < block_.n; c += kTileCols) {
        t.c = row + c;
        t.cols = std::min<int64_t>(kTileCols, block_.n - c);
        const float* p = sums + r * block_.n + c;
        if (t.cols == kTileCols) {
          store_row(hn::LoadU(d, p), hn::LoadU(d, p + kTileCols / 2), t, 0);
        } else {
          store_values(p, t.cols, t, 0);
        }
      }
    }
  }

  const GemmBlock& block_;
  const TileTable& tiles_;
  int64_t num_col_panels_ = 0, num_row_panels_ = 0;
  float* a_panels_ = nullptr;
  float* b_panels_ = nullptr;
  int64_t k_ = 0, words_ = 0;
  void* out_ = nullptr;
  int64_t out_stride_ = 0;
  bool out_is_f32_ = true;
  TileStore store_ = TileStore::f32;
};

void RunBlock(const GemmBlock& block) {
  if (block.m == 0 || block.n == 0) return;
  const bool bf16 = block.dtype == DType::bf16;
  if (block.m <= kSkinnyRows && !block.a_rows_are_k && !block.b_rows_are_k) {
    bf16 ? run_skinny<WidenedWords>(block) : run_skinny<F32Words>(block);
  } else if (!bf16) {
    BlockProduct<F32Words>(block, f32_tiles()).run();
  } else if (amx_is_used()) {
    run_amx_block(block);
  } else {
    if constexpr (kPairsFit) {
      if (use_pairs(block.dtype)) return BlockProduct<PairWords>(block, avx512_bf16_tiles()).run();
    }
    BlockProduct<WidenedWords>(block, f32_tiles()).run();
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(RunBlock);
HWY_EXPORT(Geometry);

void run_gemm_block(const GemmBlock& block) {
  HWY_DYNAMIC_DISPATCH(RunBlock)(block);
}

GemmGeometry gemm_geometry(DType dtype) {
  return HWY_DYNAMIC_DISPATCH(Geometry)(dtype);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
