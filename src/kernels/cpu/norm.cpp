#include <vector>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// Sum of squares of s = x (+ residual), storing s when there is a residual.
template <class T>
float square_sum(const T* x, const T* residual, T* sum, int64_t width) {
  const F32 d;
  Vf even = hn::Zero(d), odd = hn::Zero(d);
  for (int64_t i = 0; i < width; i += lanes()) {
    const Part part(width - i);
    Vf s = part.load(x + i);
    if (residual != nullptr) {
      s = as_stored(hn::Add(s, part.load(residual + i)), x);
      part.store(s, sum + i);
    }
    const Vf swap =
        hn::MulAdd(s, s, even);  // two sums in turn, so that one addition need not wait for the last
    even = odd;
    odd = swap;
  }
  return sum_lanes(hn::Add(even, odd));
}

template <class T>
void forward_rows(const RmsNormForwardArgs& a, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t width = a.width;
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * width;
    const T* residual = a.residual == nullptr ? nullptr : static_cast<const T*>(a.residual) + r * width;
    T* sum = a.residual == nullptr ? nullptr : static_cast<T*>(a.sum) + r * width;
    T* y = static_cast<T*>(a.y) + r * width;
    const float mean = square_sum(x, residual, sum, width) / static_cast<float>(width);
    const float inv = 1.0f / std::sqrt(mean + a.eps);
    a.inv_rms[r] = inv;
    const T* s = sum == nullptr ? x : sum;
    const Vf scale = hn::Set(d, inv);
    for (int64_t i = 0; i < width; i += lanes()) {
      const Part part(width - i);
      part.store(hn::Mul(hn::Mul(part.load(s + i), scale), part.load(weight + i)), y + i);
    }
  }
}

void ForwardRows(const RmsNormForwardArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? forward_rows<float>(a, begin, end) : forward_rows<Bf16>(a, begin, end);
}

// grad_weight: (D) sums of these rows, added to.
template <class T>
void backward_rows(const RmsNormBackwardArgs& a, int64_t begin, int64_t end, float* grad_weight) {
  const F32 d;
  const int64_t width = a.width;
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t r = begin; r < end; ++r) {
    const T* s = static_cast<const T*>(a.s) + r * width;
    const T* grad_y = static_cast<const T*>(a.grad_y) + r * width;
    const T* grad_sum = a.grad_sum == nullptr ? nullptr : static_cast<const T*>(a.grad_sum) + r * width;
    T* grad_s = static_cast<T*>(a.grad_s) + r * width;
    const float inv = a.inv_rms[r];
    const Vf scale = hn::Set(d, inv);
    Vf dot = hn::Zero(d);
    for (int64_t i = 0; i < width; i += lanes()) {
      const Part part(width - i);
      const Vf g = part.load(grad_y + i);
      const Vf gx = hn::Mul(g, hn::Mul(part.load(s + i), scale));
      dot = hn::MulAdd(gx, part.load(weight + i), dot);
      part.store(hn::Add(part.load(grad_weight + i), gx), grad_weight + i);
    }
    // d/ds (s * inv) = inv * (I - xhat xhat^T / D), xhat = s * inv
    const Vf pull = hn::Set(d, -sum_lanes(dot) / static_cast<float>(width));
    for (int64_t i = 0; i < width; i += lanes()) {
      const Part part(width - i);
      const Vf g = hn::Mul(part.load(grad_y + i), part.load(weight + i));
      Vf grad = hn::Mul(hn::MulAdd(hn::Mul(part.load(s + i), scale), pull, g), scale);
      if (grad_sum != nullptr) grad = hn::Add(grad, part.load(grad_sum + i));
      part.store(grad, grad_s + i);
    }
  }
}

void BackwardRows(const RmsNormBackwardArgs& a, int64_t begin, int64_t end, float* grad_weight) {
  a.dtype == DType::f32 ? backward_rows<float>(a, begin, end, grad_weight)
                        : backward_rows<Bf16>(a, begin, end, grad_weight);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(ForwardRows);
HWY_EXPORT(BackwardRows);

void rms_norm_forward(const RmsNormForwardArgs& args, Stream) {
  parallel_for(0, args.num_rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(ForwardRows)(args, begin, end);
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& args, Stream) {
  const Blocks blocks = cut_rows(args.num_rows);
  std::vector<float> partial(static_cast<size_t>(blocks.count * args.width));
  parallel_blocks(blocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) HWY_DYNAMIC_DISPATCH(BackwardRows)
    (args, blocks.begin(b), blocks.end(b), partial.data() + b * args.width);
  });
  add_partials(partial, blocks.count, args.width, args.grad_weight);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
