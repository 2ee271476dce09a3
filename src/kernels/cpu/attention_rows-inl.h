// What is done with rows of scores, shared by the attention of whole documents and of parts of them. Included
// once per instruction set (Highway's -inl convention).
#include <algorithm>
#include <cmath>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/simd-inl.h"

#if defined(MOEBIUS_KERNELS_CPU_ATTENTION_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_KERNELS_CPU_ATTENTION_ROWS_INL_H_
#undef MOEBIUS_KERNELS_CPU_ATTENTION_ROWS_INL_H_
#else
#define MOEBIUS_KERNELS_CPU_ATTENTION_ROWS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// Rows are turned in place from fp32 into the dtype of the weights: what is written lies before what is read.
template <class T>
T* row_in_place(float* rows, int64_t r, int64_t stride) {
  return reinterpret_cast<T*>(rows + r * stride);
}

template <class T>
void zero_from(T* row, int64_t begin, int64_t end) {
  std::fill(row + begin, row + end, T{});
}

// Of the scores [first, seen) of a row.
inline float largest_of(const float* scores, int64_t first, int64_t seen) {
  Vf max = hn::Set(F32(), -3.402823466e38f);
  for (int64_t i = first; i < seen; i += lanes()) {
    const Part part(seen - i);
    max = hn::Max(max, part.keep(part.load(scores + i), -3.402823466e38f));
  }
  return max_lanes(max);
}

// They become exp(scale * score - shift); returns their sum.
inline float exponentials(float* scores, int64_t first, int64_t seen, float scale, float shift) {
  const F32 d;
  const Vf factor = hn::Set(d, scale), minus = hn::Set(d, -shift);
  Vf sums = hn::Zero(d);
  for (int64_t i = first; i < seen; i += lanes()) {
    const Part part(seen - i);
    const Vf e = exp(hn::MulAdd(part.load(scores + i), factor, minus));
    sums = hn::Add(sums, part.keep(e, 0.0f));
    part.store(e, scores + i);
  }
  return sum_lanes(sums);
}

// Row r of what exponentials() left, times the factor, in the dtype of the weights; zero for unseen keys.
template <class T>
void scaled_weights(const ScoreRows& s, int64_t r, float factor) {
  const float* scores = s.scores + r * s.stride;
  T* weights = row_in_place<T>(s.scores, r, s.stride);
  const int64_t seen = s.end_key(r), first = s.first_key(r);
  const Vf scale = hn::Set(F32(), factor);
  for (int64_t i = first; i < seen; i += lanes()) {
    const Part part(seen - i);
    part.store(hn::Mul(part.load(scores + i), scale), weights + i);
  }
  zero_from(weights, 0, first);
  zero_from(weights, seen, s.num_keys);
}

template <class T>
void softmax_rows(const ScoreRows& s) {
  for (int64_t r = 0; r < s.num_rows; ++r) {
    float* scores = s.scores + r * s.stride;
    const int64_t seen = s.end_key(r), first = s.first_key(r);
    float largest = largest_of(scores, first, seen) * s.scale;
    if (s.sink != nullptr) largest = std::max(largest, *s.sink);
    float sum = exponentials(scores, first, seen, s.scale, largest);
    if (s.sink != nullptr) sum += std::exp(*s.sink - largest);
    if (s.lse != nullptr) s.lse[r] = largest + std::log(sum);
    scaled_weights<T>(s, r, 1.0f / sum);
  }
}

// The same for queries that have seen other keys already: what these gave stands in `m` and in the
// logarithms of the sums, and both become those of all keys together.
template <class T>
void merge_rows(const ScoreRows& s, const MergedRows& m) {
  for (int64_t r = 0; r < s.num_rows; ++r) {
    float* scores = s.scores + r * s.stride;
    const int64_t seen = s.end_key(r), first = s.first_key(r);
    if (first >= seen) {
      zero_from(row_in_place<T>(s.scores, r, s.stride), 0, s.num_keys);
      continue;
    }
    const float largest = largest_of(scores, first, seen) * s.scale;
    const float sum = exponentials(scores, first, seen, s.scale, largest);
    const float before = s.lse[r], own = largest + std::log(sum), more = std::max(before, own);
    const float all = more + std::log(std::exp(before - more) + std::exp(own - more));
    s.lse[r] = all;
    const Vf kept = hn::Set(F32(), std::exp(before - all));
    float* out = m.out + r * m.stride;
    for (int64_t i = 0; i < m.width; i += lanes()) {
      const Part part(m.width - i);
      part.store(hn::Mul(part.load(out + i), kept), out + i);
    }
    scaled_weights<T>(s, r, std::exp(largest - all));
  }
}

template <class T>
float dot(const T* a, const T* b, int64_t n) {
  Vf sum = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    sum = hn::MulAdd(part.load(a + i), part.load(b + i), sum);
  }
  return sum_lanes(sum);
}

template <class T>
void gradient_rows(const ScoreRows& s, const GradientRows& g) {
  const F32 d;
  const Vf scale = hn::Set(d, s.scale);
  for (int64_t r = 0; r < s.num_rows; ++r) {
    const float* scores = s.scores + r * s.stride;
    const float* grads = g.grad_weights + r * s.stride;
    T* weights = row_in_place<T>(s.scores, r, s.stride);
    T* grad_scores = row_in_place<T>(g.grad_weights, r, s.stride);
    const int64_t seen = s.end_key(r), first = s.first_key(r), row = r * g.row_stride;
    const Vf shift = hn::Set(d, -s.lse[r]);
    const float mean_grad =
        dot(static_cast<const T*>(g.out) + row, static_cast<const T*>(g.grad_out) + row, g.value_dim);
    if (s.sink != nullptr) *g.grad_sink -= std::exp(*s.sink - s.lse[r]) * mean_grad;
    const Vf mean = hn::Set(d, mean_grad);
    for (int64_t i = first; i < seen; i += lanes()) {
      const Part part(seen - i);
      const Vf p = exp(hn::MulAdd(part.load(scores + i), scale, shift));
      const Vf ds = hn::Mul(hn::Mul(p, scale), hn::Sub(part.load(grads + i), mean));
      part.store(p, weights + i);
      part.store(ds, grad_scores + i);
    }
    for (T* each : {weights, grad_scores}) {
      zero_from(each, 0, first);
      zero_from(each, seen, s.num_keys);
    }
  }
}

template <class T>
void store_sums(const float* sums, int64_t num_rows, int64_t width, T* out, int64_t stride) {
  for (int64_t r = 0; r < num_rows; ++r, sums += width, out += stride)
    for (int64_t i = 0; i < width; i += lanes()) {
      const Part part(width - i);
      part.store(part.load(sums + i), out + i);
    }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
