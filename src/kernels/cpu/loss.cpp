#include <cstring>

#include "base/check.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/loss.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// logsumexp of a row, split as max + log(sum) so that little is lost to rounding.
struct LogSum {
  float max, log_sum;
};

template <class T>
LogSum log_sum_exp(const T* logits, int64_t vocab) {
  const F32 d;
  const float lowest = -HUGE_VALF;
  Vf max0 = hn::Set(d, lowest), max1 = max0;
  int64_t i = 0;
  for (; i + 2 * lanes() <= vocab; i += 2 * lanes()) {
    max0 = hn::Max(max0, load(logits + i));
    max1 = hn::Max(max1, load(logits + i + lanes()));
  }
  for (; i < vocab; i += lanes()) {
    const Part part(vocab - i);
    max0 = hn::Max(max0, part.keep(part.load(logits + i), lowest));
  }
  const float max = max_lanes(hn::Max(max0, max1));
  const Vf shift = hn::Set(d, max);
  Vf sum0 = hn::Zero(d), sum1 = sum0;
  for (i = 0; i + 2 * lanes() <= vocab; i += 2 * lanes()) {
    sum0 = hn::Add(sum0, exp(hn::Sub(load(logits + i), shift)));
    sum1 = hn::Add(sum1, exp(hn::Sub(load(logits + i + lanes()), shift)));
  }
  for (; i < vocab; i += lanes()) {
    const Part part(vocab - i);
    sum0 = hn::Add(sum0, part.keep(exp(hn::Sub(part.load(logits + i), shift)), 0.0f));
  }
  return {max, std::log(sum_lanes(hn::Add(sum0, sum1)))};
}

template <class T>
void loss_rows(const CrossEntropyArgs& a, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t vocab = a.vocab;
  for (int64_t r = begin; r < end; ++r) {
    const T* logits = static_cast<const T*>(a.logits) + r * vocab;
    T* grad = a.grad_logits == nullptr ? nullptr : static_cast<T*>(a.grad_logits) + r * vocab;
    const int64_t target = a.targets[r];
    if (target == kIgnoredTarget) {
      a.loss[r] = 0.0f;
      if (grad != nullptr) std::memset(grad, 0, static_cast<size_t>(vocab) * sizeof(T));
      continue;
    }
    const LogSum lse = log_sum_exp(logits, vocab);
    const float log_p = (to_float(logits[target]) - lse.max) - lse.log_sum;
    a.loss[r] = -log_p;
    if (grad == nullptr) continue;
    const Vf max = hn::Set(d, lse.max), log_sum = hn::Set(d, lse.log_sum), scale = hn::Set(d, *a.scale);
    for (int64_t i = 0; i < vocab; i += lanes()) {
      const Part part(vocab - i);
      const Vf p = exp(hn::Sub(hn::Sub(part.load(logits + i), max), log_sum));
      part.store(hn::Mul(scale, p), grad + i);
    }
    from_float(*a.scale * std::expm1(log_p), grad[target]);  // p - 1 without cancellation where p is near 1
  }
}

void LossRows(const CrossEntropyArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? loss_rows<float>(a, begin, end) : loss_rows<Bf16>(a, begin, end);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(LossRows);

void cross_entropy(const CrossEntropyArgs& args, Stream) {
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const int64_t target = args.targets[r];
    MOEBIUS_CHECK(target == kIgnoredTarget || (target >= 0 && target < args.vocab), "target ", target,
                  " of row ", r, " is outside the vocabulary of ", args.vocab);
  }
  parallel_for(0, args.num_rows, row_grain(args.vocab), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(LossRows)(args, begin, end);
  });
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
