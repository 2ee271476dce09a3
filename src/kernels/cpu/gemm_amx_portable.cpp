#include "kernels/cpu/bf16.h"
#include "kernels/cpu/gemm_amx_routines.h"

namespace moebius::kernels::cpu {
namespace {

uint32_t pair(uint32_t low, uint32_t high) {
  return low | high << 16;
}

void nothing() {}

void transpose(const TransposeArgs& t) {
  for (int64_t w = 0; w < 16; ++w) {
    for (int64_t r = 0; r < 16; ++r) {
      const auto element = [&](int64_t i) -> uint32_t {
        return r < t.num_rows && t.offset + i < t.num_elements ? t.rows[r][t.offset + i] : 0;
      };
      t.dst[w * t.stride + r] = pair(element(2 * w), element(2 * w + 1));
    }
  }
}

uint32_t joined(const JoinArgs& t, int64_t w, int64_t j) {
  const auto element = [&](int64_t i) -> uint32_t {
    return i < t.num_rows && j < t.num_cols ? t.rows[i][t.col + j] : 0;
  };
  return pair(element(2 * w), element(2 * w + 1));
}

void join(const JoinArgs& t) {
  for (int64_t w = 0; w < 16; ++w)
    for (int64_t j = 0; j < 16; ++j) t.dst[w * t.stride + j] = joined(t, w, j);
}

void join_transpose(const JoinArgs& t) {
  for (int64_t w = 0; w < 16; ++w)
    for (int64_t j = 0; j < 16; ++j) t.dst[j * t.stride + w] = joined(t, w, j);
}

float half_of(uint32_t word, bool high) {
  return to_float(Bf16{static_cast<uint16_t>(high ? word >> 16 : word)});
}

void multiply(const MultiplyArgs& t) {
  const int64_t rows = t.two_rows ? 32 : 16, cols = t.two_cols ? 32 : 16;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) {
      float sum = t.add ? t.c[r * 32 + j] : 0;
      for (int64_t w = 0; w < t.num_words; ++w) {
        const uint32_t a = t.a[r * t.a_stride + w], b = t.b[w * 32 + j];
        sum += half_of(a, false) * half_of(b, false);
        sum += half_of(a, true) * half_of(b, true);
      }
      t.c[r * 32 + j] = sum;
    }
  }
}

void store(const StoreArgs& t) {
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t j = 0; j < t.cols; ++j) {
      const float value = t.c[r * 32 + j];
      if (t.is_f32) {
        float& out = static_cast<float*>(t.out)[r * t.out_stride + j];
        out = t.add ? out + value : value;
      } else {
        Bf16& out = static_cast<Bf16*>(t.out)[r * t.out_stride + j];
        from_float(t.add ? to_float(out) + value : value, out);
      }
    }
  }
}

}  // namespace

const AmxRoutines& portable_amx_routines() {
  static constexpr AmxRoutines table{nothing, nothing, transpose, join, join_transpose, multiply, store};
  return table;
}

}  // namespace moebius::kernels::cpu
