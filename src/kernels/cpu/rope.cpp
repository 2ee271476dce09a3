#include <cstring>
#include <vector>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// out[i], out[i + half] = the pair (x1, x2) turned by the position's angle, times the weights where there are
// any. `out` may be `x`.
template <class T>
void rotate_head(const T* x, const T* weight, float scale, const float* cos_sin, int64_t half, T* out) {
  const Vf s = hn::Set(F32(), scale);
  for (int64_t i = 0; i < half; i += lanes()) {
    const Part part(half - i);
    Vf x1 = part.load(x + i), x2 = part.load(x + half + i);
    if (weight != nullptr) {
      x1 = hn::Mul(hn::Mul(x1, s), part.load(weight + i));
      x2 = hn::Mul(hn::Mul(x2, s), part.load(weight + half + i));
    }
    const Vf c = part.load(cos_sin + i), sn = part.load(cos_sin + half + i);
    part.store(hn::NegMulAdd(x2, sn, hn::Mul(x1, c)), out + i);
    part.store(hn::MulAdd(x1, sn, hn::Mul(x2, c)), out + half + i);
  }
}

// What a head has behind its rotated elements: only the weights. Apart from the loops over whole heads, which
// are slower with it inside.
template <class T>
HWY_NOINLINE void weigh_rest(const T* x, const T* weight, float scale, int64_t begin, int64_t end, T* out) {
  const Vf s = hn::Set(F32(), scale);
  for (int64_t i = begin; i < end; i += lanes()) {
    const Part part(end - i);
    Vf v = part.load(x + i);
    if (weight != nullptr) v = hn::Mul(hn::Mul(v, s), part.load(weight + i));
    part.store(v, out + i);
  }
}

template <class T>
HWY_NOINLINE void widen(const T* grad, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; i += lanes()) {
    const Part part(end - i);
    part.store(part.load(grad + i), out + i);
  }
}

// The inverse turn of a gradient, into fp32.
template <class T>
void rotate_back(const T* grad, const float* cos_sin, int64_t half, float* out) {
  for (int64_t i = 0; i < half; i += lanes()) {
    const Part part(half - i);
    const Vf g1 = part.load(grad + i), g2 = part.load(grad + half + i);
    const Vf c = part.load(cos_sin + i), sn = part.load(cos_sin + half + i);
    part.store(hn::MulAdd(g2, sn, hn::Mul(g1, c)), out + i);
    part.store(hn::NegMulAdd(g1, sn, hn::Mul(g2, c)), out + half + i);
  }
}

template <class T>
float inverse_rms(const T* x, int64_t width, float eps) {
  Vf sum = hn::Zero(F32());
  for (int64_t i = 0; i < width; i += lanes()) {
    const Vf v = Part(width - i).load(x + i);
    sum = hn::MulAdd(v, v, sum);
  }
  return 1.0f / std::sqrt(sum_lanes(sum) / static_cast<float>(width) + eps);
}

// The heads of a row that one normalisation spans, in order: queries, then keys.
struct Group {
  int64_t first_head, num_heads;
};

HWY_INLINE Group group_of(const RopeShape& s, int64_t group) {
  if (s.norm == QkNorm::head) return {group, 1};
  return group == 0 ? Group{0, s.num_heads} : Group{s.num_heads, s.num_kv_heads};
}

template <class T>
void rope_rows(const RopeForwardArgs& a, int64_t begin, int64_t end) {
  const RopeShape& s = a.shape;
  const int64_t dim = s.head_dim, rotated = s.num_rotated(), num_turned = s.num_heads + s.num_kv_heads;
  const int64_t row_width = (num_turned + s.num_kv_heads) * dim;
  const bool normalised = s.norm != QkNorm::none;
  const int64_t num_groups = normalised ? s.num_norm_groups() : 2;
  for (int64_t t = begin; t < end; ++t) {
    const T* in = static_cast<const T*>(a.qkv_in) + t * row_width;
    T* out = static_cast<T*>(a.qkv_out) + t * row_width;
    const float* cos_sin = a.cos_sin + static_cast<int64_t>(a.positions[t]) * rotated;
    for (int64_t g = 0; g < num_groups; ++g) {
      const Group group = group_of(s, g);
      float inv = 1.0f;
      if (normalised) {
        inv = inverse_rms(in + group.first_head * dim, group.num_heads * dim, s.eps);
        a.inv_rms[t * num_groups + g] = inv;
      }
      const T* weight = static_cast<const T*>(group.first_head < s.num_heads ? a.q_weight : a.k_weight);
      for (int64_t h = 0; h < group.num_heads; ++h) {
        const int64_t at = (group.first_head + h) * dim;
        const T* w = normalised ? weight + h * dim : nullptr;
        rotate_head(in + at, w, inv, cos_sin, rotated / 2, out + at);
        if (rotated < dim) weigh_rest(in + at, w, inv, rotated, dim, out + at);
      }
    }
    if (in != out)
      std::memcpy(out + num_turned * dim, in + num_turned * dim,
                  static_cast<size_t>(s.num_kv_heads * dim) * sizeof(T));
  }
}

void RopeRows(const RopeForwardArgs& a, int64_t begin, int64_t end) {
  a.shape.dtype == DType::f32 ? rope_rows<float>(a, begin, end) : rope_rows<Bf16>(a, begin, end);
}

// Backward of the normalisation of one group. `turned`: fp32 gradient after the weights; weight gradients are
// added to.
template <class T>
void norm_back(const T* x, const float* turned, const T* weight, float inv, int64_t width, T* grad,
               float* grad_weight) {
  const Vf scale = hn::Set(F32(), inv);
  Vf dot = hn::Zero(F32());
  for (int64_t i = 0; i < width; i += lanes()) {
    const Part part(width - i);
    const Vf gx = hn::Mul(part.load(turned + i), hn::Mul(part.load(x + i), scale));
    dot = hn::MulAdd(gx, part.load(weight + i), dot);
    part.store(hn::Add(part.load(grad_weight + i), gx), grad_weight + i);
  }
  const Vf pull = hn::Set(F32(), -sum_lanes(dot) / static_cast<float>(width));
  for (int64_t i = 0; i < width; i += lanes()) {
    const Part part(width - i);
    const Vf g = hn::Mul(part.load(turned + i), part.load(weight + i));
    const Vf xhat = hn::Mul(part.load(x + i), scale);
    part.store(hn::Mul(hn::MulAdd(xhat, pull, g), scale), grad + i);
  }
}

// scratch: fp32 for the widest group. grad_q_weight, grad_k_weight: sums of these rows, added to.
template <class T>
void rope_back_rows(const RopeBackwardArgs& a, int64_t begin, int64_t end, float* scratch,
                    float* grad_q_weight, float* grad_k_weight) {
  const RopeShape& s = a.shape;
  const int64_t dim = s.head_dim, rotated = s.num_rotated(), num_turned = s.num_heads + s.num_kv_heads;
  const int64_t row_width = (num_turned + s.num_kv_heads) * dim;
  const int64_t num_groups = s.num_norm_groups();
  for (int64_t t = begin; t < end; ++t) {
    const T* grad_out = static_cast<const T*>(a.grad_out) + t * row_width;
    T* grad_in = static_cast<T*>(a.grad_in) + t * row_width;
    const float* cos_sin = a.cos_sin + static_cast<int64_t>(a.positions[t]) * rotated;
    if (s.norm == QkNorm::none) {
      for (int64_t at = 0; at < num_turned * dim; at += dim) {
        rotate_back(grad_out + at, cos_sin, rotated / 2, scratch);
        if (rotated < dim) widen(grad_out + at, rotated, dim, scratch);
        for (int64_t i = 0; i < dim; i += lanes()) {
          const Part part(dim - i);
          part.store(part.load(scratch + i), grad_in + at + i);
        }
      }
    }
    for (int64_t g = 0; g < num_groups; ++g) {
      const Group group = group_of(s, g);
      const int64_t at = group.first_head * dim;
      const bool query = group.first_head < s.num_heads;
      for (int64_t h = 0; h < group.num_heads; ++h) {
        rotate_back(grad_out + at + h * dim, cos_sin, rotated / 2, scratch + h * dim);
        if (rotated < dim) widen(grad_out + at + h * dim, rotated, dim, scratch + h * dim);
      }
      norm_back(static_cast<const T*>(a.qkv_in) + t * row_width + at, scratch,
                static_cast<const T*>(query ? a.q_weight : a.k_weight), a.inv_rms[t * num_groups + g],
                group.num_heads * dim, grad_in + at, query ? grad_q_weight : grad_k_weight);
    }
    if (grad_in != grad_out)
      std::memcpy(grad_in + num_turned * dim, grad_out + num_turned * dim,
                  static_cast<size_t>(s.num_kv_heads * dim) * sizeof(T));
  }
}

void RopeBackRows(const RopeBackwardArgs& a, int64_t begin, int64_t end, float* scratch, float* grad_q_weight,
                  float* grad_k_weight) {
  a.shape.dtype == DType::f32 ? rope_back_rows<float>(a, begin, end, scratch, grad_q_weight, grad_k_weight)
                              : rope_back_rows<Bf16>(a, begin, end, scratch, grad_q_weight, grad_k_weight);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(RopeRows);
HWY_EXPORT(RopeBackRows);

void rope_forward(const RopeForwardArgs& args, Stream) {
  const RopeShape& s = args.shape;
  const int64_t width = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
  parallel_for(0, s.num_tokens, row_grain(width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(RopeRows)(args, begin, end);
  });
}

void rope_backward(const RopeBackwardArgs& args, Stream) {
  const RopeShape& s = args.shape;
  const bool full = s.norm == QkNorm::full, normalised = s.norm != QkNorm::none;
  const int64_t q_width = full ? s.num_heads * s.head_dim : s.head_dim;
  const int64_t k_width = full ? s.num_kv_heads * s.head_dim : s.head_dim;
  const Blocks blocks = cut_rows(s.num_tokens);
  std::vector<float> q_partial, k_partial;
  if (normalised) {
    q_partial.resize(static_cast<size_t>(blocks.count * q_width));
    k_partial.resize(static_cast<size_t>(blocks.count * k_width));
  }
  parallel_blocks(blocks, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(static_cast<size_t>(std::max(q_width, k_width)));
    for (int64_t b = first; b < last; ++b) {
      HWY_DYNAMIC_DISPATCH(RopeBackRows)
      (args, blocks.begin(b), blocks.end(b), scratch.data(),
       normalised ? q_partial.data() + b * q_width : nullptr,
       normalised ? k_partial.data() + b * k_width : nullptr);
    }
  });
  if (!normalised) return;
  add_partials(q_partial, blocks.count, q_width, args.grad_q_weight);
  add_partials(k_partial, blocks.count, k_width, args.grad_k_weight);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
