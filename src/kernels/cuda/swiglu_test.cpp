#include <algorithm>
#include <cmath>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

void check_swiglu(DType dtype, int64_t offset, int64_t rows, int64_t width, int64_t valid, bool in_place) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width) + ", valid " + std::to_string(valid));
  const Values gate_up = Values::normal(dtype, rows * width * 2, 1, 1.5, offset);
  const Values grad = Values::normal(dtype, rows * width, 2, 1.0, offset),
               scale = Values::normal(DType::f32, rows, 3);
  const Values out(dtype, rows * width, offset);
  const Integers<int32_t> count(std::vector<int32_t>{static_cast<int32_t>(valid)});
  const int32_t* valid_rows = valid < 0 ? nullptr : count.data();
  swiglu_forward({gate_up.data(), out.data(), valid_rows, rows, width, dtype}, nullptr);
  const size_t n = static_cast<size_t>(rows * width);
  std::vector<double> act(n), scaled(n), grad_gate_up(2 * n), grad_scale(static_cast<size_t>(rows));
  for (size_t i = 0; i < n; ++i) {
    const size_t r = i / static_cast<size_t>(width);
    if (valid >= 0 && r >= static_cast<size_t>(valid)) continue;
    const double gate = gate_up.start()[2 * i], up = gate_up.start()[2 * i + 1],
                 s = 1.0 / (1.0 + std::exp(-gate));
    const double w = scale.start()[r], g = grad.start()[i];
    act[i] = gate * s * up;
    scaled[i] = w * act[i];
    grad_scale[r] += g * act[i];
    grad_gate_up[2 * i] = w * g * up * (s + gate * s * (1.0 - s));
    grad_gate_up[2 * i + 1] = w * g * gate * s;
  }
  expect_close("act", out.host(), act, dtype);
  const Values other(dtype, 2 * rows * width, offset), third(dtype, rows * width, offset),
      row_grad(DType::f32, rows);
  const Values& to = in_place ? gate_up : other;
  const Values& act_to = in_place ? grad : third;
  swiglu_backward({gate_up.data(), grad.data(), scale.floats(), to.data(), act_to.data(), row_grad.floats(),
                   valid_rows, rows, width, dtype},
                  nullptr);
  expect_close("grad_gate_up", to.host(), grad_gate_up, dtype);
  expect_close("act_scaled", act_to.host(), scaled, dtype);
  expect_close("grad_row_scale", row_grad.host(), grad_scale, DType::f32);
  if (in_place) return;
  // The same with row r's scale and its gradient at the slot rows - 1 - r; slots of no row stay as they are.
  std::vector<int32_t> order(static_cast<size_t>(rows));
  for (size_t r = 0; r < order.size(); ++r) order[r] = static_cast<int32_t>(order.size() - 1 - r);
  const Integers<int32_t> slots(order);
  const Values by_slot(DType::f32, std::vector<double>(scale.start().rbegin(), scale.start().rend())),
      slot_grad(DType::f32, std::vector<double>(static_cast<size_t>(rows), 7.0));
  swiglu_backward({gate_up.data(), grad.data(), by_slot.floats(), to.data(), act_to.data(),
                   slot_grad.floats(), valid_rows, rows, width, dtype, slots.data()},
                  nullptr);
  expect_close("grad_gate_up by slots", to.host(), grad_gate_up, dtype);
  std::vector<double> expected(grad_scale.rbegin(), grad_scale.rend());
  if (valid >= 0) std::fill(expected.begin(), expected.end() - valid, 7.0);
  expect_close("grad_row_scale by slots", slot_grad.host(), expected, DType::f32);
}

TEST(CudaSwiglu, agrees_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    for (const int64_t width : {1, 5, 8, 96, 256, 768, 1408, 14336})
      check_swiglu(dtype, offset, 33, width, -1, false);
    check_swiglu(dtype, offset, 129, 96, 57, false);
    check_swiglu(dtype, offset, 129, 96, 0, false);
    check_swiglu(dtype, offset, 64, 640, 63, true);
  });
}

TEST(CudaSwiglu, needs_neither_scale_nor_its_outputs) {
  MOEBIUS_NEEDS_DEVICE();
  const Values gate_up = Values::normal(DType::f32, 2 * 64, 1), grad = Values::normal(DType::f32, 64, 2);
  const Values out(DType::f32, 2 * 64), ones(DType::f32, std::vector<double>(4, 1.0)),
      other(DType::f32, 2 * 64);
  swiglu_backward(
      {gate_up.data(), grad.data(), nullptr, out.data(), nullptr, nullptr, nullptr, 4, 16, DType::f32},
      nullptr);
  swiglu_backward({gate_up.data(), grad.data(), ones.floats(), other.data(), nullptr, nullptr, nullptr, 4, 16,
                   DType::f32},
                  nullptr);
  EXPECT_EQ(out.host(), other.host());
}

}  // namespace
}  // namespace moebius::kernels::cuda
