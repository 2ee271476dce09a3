#include "kernels/cpu/gemm_amx.h"

#include <algorithm>
#include <vector>

#include "base/integers.h"
#include "kernels/cpu/gemm_amx_routines.h"
#include "kernels/cpu/scratch.h"

namespace moebius::kernels::cpu {
namespace {

using Element = uint16_t;

AmxMode mode = AmxMode::automatic;

const AmxRoutines& routines() {
  return mode == AmxMode::portable ? portable_amx_routines() : *hardware_amx_routines();
}

const Element* row_of(const GemmOperand& operand, int64_t r) {
  const int64_t row = operand.index == nullptr ? r : operand.index[r] / operand.divisor;
  return static_cast<const Element*>(operand.data) + row * operand.stride;
}

// One block: B is packed whole per stretch of k, A one panel of 32 rows at a time. Words past the end of k
// are zero in both, so that whole tiles can be multiplied.
class AmxProduct {
 public:
  explicit AmxProduct(const GemmBlock& block) : block_(block), routines_(routines()) {}

  void run() {
    thread_local Scratch a_scratch, b_scratch, c_scratch;
    const int64_t num_words = std::max<int64_t>(1, ceil_div(block_.k, 2));
    const int64_t num_stretches = ceil_div(num_words, kAmxMaxWords);
    const int64_t stretch = ceil_div(ceil_div(num_words, num_stretches), kTileWords) * kTileWords;
    num_row_panels_ = ceil_div(block_.m, kAmxRows);
    num_col_panels_ = ceil_div(block_.n, kAmxCols);
    a_stride_ =
        stretch + kTileWords;  // not a multiple of a page: rows of a panel keep to different cache sets
    a_ = reinterpret_cast<uint32_t*>(a_scratch.floats(kAmxRows * a_stride_));
    b_ = reinterpret_cast<uint32_t*>(b_scratch.floats(num_col_panels_ * stretch * kAmxCols));
    const bool staged = num_stretches > 1;
    float* c = c_scratch.floats(staged ? num_row_panels_ * num_col_panels_ * kTileFloats : kTileFloats);

    routines_.begin();
    for (int64_t s = 0; s < num_stretches; ++s) {
      first_ = std::min(block_.k, s * stretch * 2);
      k_ = std::min(block_.k - first_, stretch * 2);
      words_ = std::max<int64_t>(1, ceil_div(k_, 2 * kTileWords)) * kTileWords;
      pack_b();
      for (int64_t p = 0; p < num_row_panels_; ++p) {
        const int64_t rows = std::min(kAmxRows, block_.m - p * kAmxRows);
        pack_a(p * kAmxRows, rows);
        for (int64_t q = 0; q < num_col_panels_; ++q) {
          const int64_t cols = std::min(kAmxCols, block_.n - q * kAmxCols);
          float* sums = staged ? c + (p * num_col_panels_ + q) * kTileFloats : c;
          routines_.multiply({.a = a_,
                              .a_stride = a_stride_,
                              .b = b_ + q * words_ * kAmxCols,
                              .num_words = words_,
                              .c = sums,
                              .add = s > 0,
                              .two_rows = rows > 16,
                              .two_cols = cols > 16});
          if (s + 1 == num_stretches) store(sums, p * kAmxRows, rows, q * kAmxCols, cols);
        }
      }
    }
    routines_.end();
  }

 private:
  static constexpr int64_t kTileWords = 16;  // words along k in a tile
  static constexpr int64_t kTileFloats = kAmxRows * kAmxCols;

  // Rows first_ .. first_ + k_ of an operand whose rows are k, from word `w` on.
  void find_rows(const GemmOperand& operand) {
    rows_.resize(static_cast<size_t>(k_));
    for (int64_t i = 0; i < k_; ++i) rows_[static_cast<size_t>(i)] = row_of(operand, first_ + i);
  }

  void pack_b() {
    if (block_.b_rows_are_k) find_rows(block_.b);
    for (int64_t q = 0; q < num_col_panels_; ++q) {
      uint32_t* panel = b_ + q * words_ * kAmxCols;
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t col = q * kAmxCols + half * 16;
        const int64_t count = std::clamp<int64_t>(block_.n - col, 0, 16);
        const Element* columns[16];
        for (int64_t i = 0; i < count && !block_.b_rows_are_k; ++i)
          columns[i] = row_of(block_.b, col + i) + first_;
        for (int64_t w = 0; w < words_; w += kTileWords) {
          uint32_t* target = panel + w * kAmxCols + half * 16;
          if (block_.b_rows_are_k) {
            routines_.join({rows_.data() + std::min(2 * w, k_), k_ - 2 * w, col, count, target, kAmxCols});
          } else {
            routines_.transpose({columns, count, 2 * w, k_, target, kAmxCols});
          }
        }
      }
    }
  }

  void pack_a(int64_t begin, int64_t count) {
    if (block_.a_rows_are_k) {
      find_rows(block_.a);
      for (int64_t half = 0; half < 2 && half * 16 < count; ++half)
        for (int64_t w = 0; w < words_; w += kTileWords)
          routines_.join_transpose({rows_.data() + std::min(2 * w, k_), k_ - 2 * w, begin + half * 16,
                                    std::min<int64_t>(16, count - half * 16), a_ + half * 16 * a_stride_ + w,
                                    a_stride_});
      return;
    }
    for (int64_t r = 0; r < count; ++r) {
      auto* row = reinterpret_cast<Element*>(a_ + r * a_stride_);
      std::copy_n(row_of(block_.a, begin + r) + first_, k_, row);
      std::fill(row + k_, row + 2 * words_, Element{0});
    }
  }

  void store(const float* sums, int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    const int64_t offset = row * block_.out_stride + col;
    const bool f32 = block_.out_dtype == DType::f32;
    routines_.store({.c = sums,
                     .rows = rows,
                     .cols = cols,
                     .out = f32 ? static_cast<void*>(static_cast<float*>(block_.out) + offset)
                                : static_cast<void*>(static_cast<uint16_t*>(block_.out) + offset),
                     .out_stride = block_.out_stride,
                     .is_f32 = f32,
                     .add = block_.accumulate});
  }

  const GemmBlock& block_;
  const AmxRoutines& routines_;
  int64_t num_row_panels_ = 0, num_col_panels_ = 0;
  uint32_t* a_ = nullptr;  // (32, a_stride_)
  uint32_t* b_ = nullptr;  // per panel of 32 columns: (words_, 32)
  int64_t a_stride_ = 0, first_ = 0, k_ = 0, words_ = 0;
  std::vector<const Element*> rows_;
};

}  // namespace

void set_amx_mode(AmxMode wanted) {
  mode = wanted;
}

bool amx_is_used() {
  return mode == AmxMode::portable || (mode == AmxMode::automatic && hardware_amx_routines() != nullptr);
}

void run_amx_block(const GemmBlock& block) {
  AmxProduct(block).run();
}

}  // namespace moebius::kernels::cpu
