#include <algorithm>
#include <cstring>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

template <class T>
void forward_rows(const SwigluForwardArgs& a, int64_t begin, int64_t end) {
  // Rows are adjacent, so a range of rows is one long row.
  const T* in = static_cast<const T*>(a.gate_up) + 2 * begin * a.width;
  T* out = static_cast<T*>(a.out) + begin * a.width;
  const int64_t n = (end - begin) * a.width;
  int64_t i = 0;
  Vf gate, up;
  for (; i + lanes() <= n; i += lanes()) {
    load_pairs(in + 2 * i, gate, up);
    store(hn::Mul(hn::Mul(gate, sigmoid(gate)), up), out + i);
  }
  if (i < n) {
    load_pairs_n(in + 2 * i, n - i, gate, up);
    store_n(hn::Mul(hn::Mul(gate, sigmoid(gate)), up), out + i, n - i);
  }
}

void SwigluRows(const SwigluForwardArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? forward_rows<float>(a, begin, end) : forward_rows<Bf16>(a, begin, end);
}

// Of one vector of units: the gradients of gate and up for the output gradient w * g, and the activation.
HWY_INLINE void gradients(Vf gate, Vf up, Vf wg, Vf& grad_gate, Vf& grad_up, Vf& act) {
  const Vf one = hn::Set(F32(), 1.0f);
  const Vf sig = sigmoid(gate), silu = hn::Mul(gate, sig);
  act = hn::Mul(silu, up);
  grad_up = hn::Mul(wg, silu);
  // silu' = sig * (1 + gate * (1 - sig)) = sig + silu * (1 - sig)
  grad_gate = hn::Mul(hn::Mul(wg, up), hn::MulAdd(silu, hn::Sub(one, sig), sig));
}

template <class T>
void backward_rows(const SwigluBackwardArgs& a, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t width = a.width;
  for (int64_t r = begin; r < end; ++r) {
    const T* in = static_cast<const T*>(a.gate_up) + 2 * r * width;
    const T* grad_out = static_cast<const T*>(a.grad_out) + r * width;
    T* grad_in = static_cast<T*>(a.grad_gate_up) + 2 * r * width;
    T* act_scaled = a.act_scaled == nullptr ? nullptr : static_cast<T*>(a.act_scaled) + r * width;
    const int64_t slot = a.slots == nullptr ? r : a.slots[r];
    const Vf w = hn::Set(d, a.row_scale == nullptr ? 1.0f : a.row_scale[slot]);
    Vf dot = hn::Zero(d);
    Vf gate, up, grad_gate, grad_up, act;
    int64_t i = 0;
    for (; i + lanes() <= width; i += lanes()) {
      load_pairs(in + 2 * i, gate, up);
      const Vf g = load(grad_out + i);
      gradients(gate, up, hn::Mul(w, g), grad_gate, grad_up, act);
      dot = hn::MulAdd(g, act, dot);
      if (act_scaled != nullptr) store(hn::Mul(w, act), act_scaled + i);
      store_pairs(grad_gate, grad_up, grad_in + 2 * i);
    }
    if (i < width) {
      const int64_t left = width - i;
      load_pairs_n(in + 2 * i, left, gate, up);
      const Vf g = load_n(grad_out + i, left);
      gradients(gate, up, hn::Mul(w, g), grad_gate, grad_up, act);
      dot = hn::MulAdd(g, act, dot);
      if (act_scaled != nullptr) store_n(hn::Mul(w, act), act_scaled + i, left);
      store_pairs_n(grad_gate, grad_up, grad_in + 2 * i, left);
    }
    if (a.grad_row_scale != nullptr) a.grad_row_scale[slot] = sum_lanes(dot);
  }
}

void SwigluBackRows(const SwigluBackwardArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? backward_rows<float>(a, begin, end) : backward_rows<Bf16>(a, begin, end);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {
namespace {

int64_t count_valid(const int32_t* valid_rows, int64_t num_rows) {
  if (valid_rows == nullptr) return num_rows;
  return std::clamp<int64_t>(*valid_rows, 0, num_rows);
}

void zero_rows(void* data, int64_t begin, int64_t end, int64_t row_bytes) {
  if (data == nullptr || begin >= end) return;
  std::memset(static_cast<char*>(data) + begin * row_bytes, 0,
              static_cast<size_t>((end - begin) * row_bytes));
}

}  // namespace

HWY_EXPORT(SwigluRows);
HWY_EXPORT(SwigluBackRows);

void swiglu_forward(const SwigluForwardArgs& args, Stream) {
  const int64_t valid = count_valid(args.valid_rows, args.num_rows);
  parallel_for(0, valid, row_grain(args.width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(SwigluRows)(args, begin, end);
  });
  zero_rows(args.out, valid, args.num_rows, args.width * size_of(args.dtype));
}

void swiglu_backward(const SwigluBackwardArgs& args, Stream) {
  const int64_t valid = count_valid(args.valid_rows, args.num_rows);
  parallel_for(0, valid, row_grain(args.width), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(SwigluBackRows)(args, begin, end);
  });
  const int64_t row_bytes = args.width * size_of(args.dtype);
  zero_rows(args.grad_gate_up, valid, args.num_rows, 2 * row_bytes);
  zero_rows(args.act_scaled, valid, args.num_rows, row_bytes);
  if (args.slots != nullptr) return;
  zero_rows(args.grad_row_scale, valid, args.num_rows, static_cast<int64_t>(sizeof(float)));
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
