#include <cmath>
#include <vector>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

template <class P, class G, class S>
void adamw_range(const AdamWArgs& a, const AdamWTensor& t, int64_t begin, int64_t end) {
  const F32 d;
  P* param = static_cast<P*>(t.param);
  const G* grad = static_cast<const G*>(t.grad);
  S* m_state = static_cast<S*>(t.m);
  S* v_state = static_cast<S*>(t.v);
  const Vf grad_scale = hn::Set(d, *a.grad_scale);
  const Vf beta1 = hn::Set(d, a.beta1), beta2 = hn::Set(d, a.beta2);
  const Vf rest1 = hn::Set(d, static_cast<float>(1.0 - a.beta1)),
           rest2 = hn::Set(d, static_cast<float>(1.0 - a.beta2));
  const float* own = a.scalars == nullptr ? nullptr : a.scalars + 2 + 2 * t.scalar_index;
  const Vf root = hn::Set(d, own == nullptr ? adamw_root(a.correction2) : a.scalars[0]);
  const Vf eps = hn::Set(d, a.eps);
  const Vf step = hn::Set(d, own == nullptr ? adamw_step_size(t.lr, a.correction1) : own[0]);
  const Vf shrink = hn::Set(d, own == nullptr ? adamw_shrink(t.lr, t.weight_decay) : own[1]);
  for (int64_t i = begin; i < end; i += lanes()) {
    const Part part(end - i);
    const Vf g = hn::Mul(part.load(grad + i), grad_scale);
    const Vf m = hn::MulAdd(beta1, part.load(m_state + i), hn::Mul(rest1, g));
    const Vf v = hn::MulAdd(beta2, part.load(v_state + i), hn::Mul(hn::Mul(rest2, g), g));
    part.store(m, m_state + i);
    part.store(v, v_state + i);
    const Vf update = hn::Div(m, hn::MulAdd(hn::Sqrt(v), root, eps));
    Vf w = t.master == nullptr ? part.load(param + i) : part.load(t.master + i);
    w = hn::NegMulAdd(step, update, hn::Mul(w, shrink));
    if (t.master != nullptr) part.store(w, t.master + i);
    part.store(w, param + i);
  }
}

template <class P, class G>
void adamw_state(const AdamWArgs& a, const AdamWTensor& t, int64_t begin, int64_t end) {
  t.state_dtype == DType::f32 ? adamw_range<P, G, float>(a, t, begin, end)
                              : adamw_range<P, G, Bf16>(a, t, begin, end);
}

template <class P>
void adamw_grad(const AdamWArgs& a, const AdamWTensor& t, int64_t begin, int64_t end) {
  t.grad_dtype == DType::f32 ? adamw_state<P, float>(a, t, begin, end)
                             : adamw_state<P, Bf16>(a, t, begin, end);
}

void AdamWRange(const AdamWArgs& a, const AdamWTensor& t, int64_t begin, int64_t end) {
  t.param_dtype == DType::f32 ? adamw_grad<float>(a, t, begin, end) : adamw_grad<Bf16>(a, t, begin, end);
}

// Squares are summed in double: neither small gradients nor a sum over billions of them lose anything.
using F64 = hn::ScalableTag<double>;
using Vd = hn::Vec<F64>;
HWY_INLINE Vd load_double(const float* p) {
  const hn::Rebind<float, F64> half;
  return hn::PromoteTo(F64(), hn::LoadU(half, p));
}
HWY_INLINE Vd load_double(const Bf16* p) {
  const hn::Rebind<uint16_t, F64> half16;
  const hn::Rebind<uint32_t, F64> half32;
  const hn::Rebind<float, F64> half;
  const auto bits = hn::PromoteTo(half32, hn::LoadU(half16, reinterpret_cast<const uint16_t*>(p)));
  return hn::PromoteTo(F64(), hn::BitCast(half, hn::ShiftLeft<16>(bits)));
}

template <class T>
double square_sum(const T* x, int64_t n) {
  const F64 d;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  Vd sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    const Vd a = load_double(x + i), b = load_double(x + i + step);
    const Vd c = load_double(x + i + 2 * step), e = load_double(x + i + 3 * step);
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
    sum2 = hn::MulAdd(c, c, sum2);
    sum3 = hn::MulAdd(e, e, sum3);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
  for (; i < n; ++i) sum += static_cast<double>(to_float(x[i])) * to_float(x[i]);
  return sum;
}

double SquareSum(const GradTensor& t, int64_t begin, int64_t end) {
  return t.dtype == DType::f32 ? square_sum(static_cast<const float*>(t.data) + begin, end - begin)
                               : square_sum(static_cast<const Bf16*>(t.data) + begin, end - begin);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {
namespace {

// The whole list as pieces of at most kPiece elements, so that many small tensors and few large ones spread
// alike.
constexpr int64_t kPiece = 32768;

struct Piece {
  size_t tensor;
  int64_t begin, end;
};

template <class Tensor>
std::vector<Piece> cut(std::span<const Tensor> tensors) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (int64_t begin = 0; begin < tensors[i].size; begin += kPiece)
      pieces.push_back({i, begin, std::min(tensors[i].size, begin + kPiece)});
  }
  return pieces;
}

}  // namespace

HWY_EXPORT(AdamWRange);
HWY_EXPORT(SquareSum);

void adamw(const AdamWArgs& args, Stream) {
  if (!std::isfinite(*args.grad_scale)) return;
  const std::vector<Piece> pieces = cut(args.tensors);
  parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      HWY_DYNAMIC_DISPATCH(AdamWRange)(args, args.tensors[piece.tensor], piece.begin, piece.end);
    }
  });
}

void sum_squares(const SumSquaresArgs& args, Stream) {
  const std::vector<Piece> pieces = cut(args.tensors);
  std::vector<double> sums(pieces.size());
  parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      sums[static_cast<size_t>(i)] =
          HWY_DYNAMIC_DISPATCH(SquareSum)(args.tensors[piece.tensor], piece.begin, piece.end);
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  *args.out = static_cast<float>(total);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
