// AdamW with moments in eight bits (kernels/api/moment_codes.h), block after block of 256 elements. The loops
// have a known length and no branches, so that the compiler makes vectors of them for each instruction set.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/api/moment_codes.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw_8bit.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// `count` elements as floats; the rest of the block is zero.
template <class T>
void load_block(const T* from, int count, float* to) {
  for (int i = 0; i < count; i += static_cast<int>(lanes())) {
    const Part part(count - i);
    Part(kMomentBlock - i).store(part.load(from + i), to + i);
  }
  std::fill(to + count, to + kMomentBlock, 0.0f);
}
template <class T>
void store_block(const float* from, int count, T* to) {
  for (int i = 0; i < count; i += static_cast<int>(lanes())) {
    const Part part(count - i);
    part.store(part.load(from + i), to + i);
  }
}

struct EightBitFactors {
  float beta1, beta2, rest1, rest2, eps, root, step_size, shrink, grad_scale;
  uint32_t step, tensor;
};

// One block of `count` elements that begins at element `begin`.
template <class P, class G>
void eight_bit_block(const AdamWTensor& t, const EightBitFactors& by, int64_t begin, int count) {
  float w[kMomentBlock], g[kMomentBlock], m[kMomentBlock], v[kMomentBlock];
  uint8_t m_codes[kMomentBlock] = {}, v_codes[kMomentBlock] = {};
  P* param = static_cast<P*>(t.param) + begin;
  uint8_t *m_out = static_cast<uint8_t*>(t.m) + begin, *v_out = static_cast<uint8_t*>(t.v) + begin;
  float &m_scale = t.m_scale[begin / kMomentBlock], &v_scale = t.v_scale[begin / kMomentBlock];
  load_block(static_cast<const G*>(t.grad) + begin, count, g);
  t.master == nullptr ? load_block(param, count, w) : load_block(t.master + begin, count, w);
  std::copy(m_out, m_out + count, m_codes);
  std::copy(v_out, v_out + count, v_codes);
  float m_max = 0.0f, v_max = 0.0f;
  for (int i = 0; i < kMomentBlock; ++i) {
    const float scaled = g[i] * by.grad_scale;
    m[i] = by.beta1 * (decode_first_moment(m_codes[i]) * m_scale) + by.rest1 * scaled;
    v[i] = by.beta2 * (decode_second_moment(v_codes[i]) * v_scale) + by.rest2 * scaled * scaled;
    w[i] = w[i] * by.shrink - by.step_size * (m[i] / (std::sqrt(v[i]) * by.root + by.eps));
  }
  for (int i = 0; i < kMomentBlock; ++i) {
    m_max = std::max(m_max, std::fabs(m[i]));
    v_max = std::max(v_max, v[i]);
  }
  store_block(w, count, param);
  if (t.master != nullptr) store_block(w, count, t.master + begin);
  const float m_by = m_max > 0.0f ? m_max : 1.0f, v_by = v_max > 0.0f ? v_max : 1.0f;
  for (int i = 0; i < kMomentBlock; ++i) {
    const uint32_t chance = moment_chance(by.step, by.tensor, static_cast<uint32_t>(begin + i));
    m_codes[i] = encode_first_moment(m[i] / m_by, chance);
    v_codes[i] = encode_second_moment(v[i] / v_by, chance >> 12);
  }
  std::copy(m_codes, m_codes + count, m_out);
  std::copy(v_codes, v_codes + count, v_out);
  m_scale = m_max;
  v_scale = v_max;
}

template <class P, class G>
void eight_bit_range(const AdamWTensor& t, const EightBitFactors& by, int64_t begin, int64_t end) {
  for (; begin < end; begin += kMomentBlock)
    eight_bit_block<P, G>(t, by, begin, static_cast<int>(std::min<int64_t>(end - begin, kMomentBlock)));
}

void EightBitRange(const AdamWArgs& a, const AdamWTensor& t, int64_t begin, int64_t end) {
  const float* own = a.scalars == nullptr ? nullptr : a.scalars + 2 + 2 * t.scalar_index;
  const EightBitFactors by{.beta1 = a.beta1,
                           .beta2 = a.beta2,
                           .rest1 = static_cast<float>(1.0 - a.beta1),
                           .rest2 = static_cast<float>(1.0 - a.beta2),
                           .eps = a.eps,
                           .root = own == nullptr ? adamw_root(a.correction2) : a.scalars[0],
                           .step_size = own == nullptr ? adamw_step_size(t.lr, a.correction1) : own[0],
                           .shrink = own == nullptr ? adamw_shrink(t.lr, t.weight_decay) : own[1],
                           .grad_scale = *a.grad_scale,
                           .step = own == nullptr ? a.step : static_cast<uint32_t>(a.scalars[1]),
                           .tensor = static_cast<uint32_t>(t.scalar_index)};
  if (t.param_dtype == DType::f32) {
    t.grad_dtype == DType::f32 ? eight_bit_range<float, float>(t, by, begin, end)
                               : eight_bit_range<float, Bf16>(t, by, begin, end);
  } else {
    t.grad_dtype == DType::f32 ? eight_bit_range<Bf16, float>(t, by, begin, end)
                               : eight_bit_range<Bf16, Bf16>(t, by, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(EightBitRange);

void adamw_8bit(const AdamWArgs& args, Stream) {
  if (!std::isfinite(*args.grad_scale)) return;
  constexpr int64_t kPieceBlocks = 128;  // of moments
  struct Piece {
    size_t tensor;
    int64_t begin, end;
  };
  std::vector<Piece> pieces;
  for (size_t i = 0; i < args.tensors.size(); ++i)
    for (int64_t begin = 0; begin < args.tensors[i].size; begin += kPieceBlocks * kMomentBlock)
      pieces.push_back({i, begin, std::min(args.tensors[i].size, begin + kPieceBlocks * kMomentBlock)});
  parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      HWY_DYNAMIC_DISPATCH(EightBitRange)(args, args.tensors[piece.tensor], piece.begin, piece.end);
    }
  });
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
