#include <cmath>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

void check_norm(DType dtype, int64_t offset, int64_t rows, int64_t width, bool residual) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width) + (residual ? " with residual" : ""));
  const Values x = Values::normal(dtype, rows * width, 1, 1.0, offset),
               add = Values::normal(dtype, rows * width, 2, 1.0, offset);
  const Values weight = Values::normal(dtype, width, 3, 1.0, offset),
               grad_y = Values::normal(dtype, rows * width, 4, 1.0, offset);
  const Values sum(dtype, rows * width, offset), y(dtype, rows * width, offset),
      grad_s(dtype, rows * width, offset);
  const Values inv(DType::f32, rows), grad_weight(DType::f32, width);
  RmsNormForwardArgs f{x.data(),
                       residual ? add.data() : nullptr,
                       residual ? sum.data() : nullptr,
                       weight.data(),
                       y.data(),
                       inv.floats(),
                       rows,
                       width,
                       1e-5f,
                       dtype};
  rms_norm_forward(f, nullptr);
  const std::vector<double> s = residual ? sum.host() : x.start();
  if (residual) {
    std::vector<double> expected(s.size());
    for (size_t i = 0; i < s.size(); ++i) expected[i] = x.start()[i] + add.start()[i];
    expect_close("sum", s, expected, dtype);
  }
  std::vector<double> ref_y(s.size()), ref_inv(static_cast<size_t>(rows)), ref_gs(s.size()),
      ref_gw(static_cast<size_t>(width));
  for (int64_t r = 0; r < rows; ++r) {
    const size_t at = static_cast<size_t>(r * width), d = static_cast<size_t>(width);
    double square = 0.0, dot = 0.0;
    for (size_t i = 0; i < d; ++i) square += s[at + i] * s[at + i];
    const double n = 1.0 / std::sqrt(square / static_cast<double>(width) + 1e-5);
    ref_inv[static_cast<size_t>(r)] = n;
    for (size_t i = 0; i < d; ++i) {
      ref_y[at + i] = s[at + i] * n * weight.start()[i];
      ref_gw[i] += grad_y.start()[at + i] * s[at + i] * n;
      dot += grad_y.start()[at + i] * weight.start()[i] * s[at + i] * n;
    }
    for (size_t i = 0; i < d; ++i)
      ref_gs[at + i] = n * (grad_y.start()[at + i] * weight.start()[i] -
                            s[at + i] * n * dot / static_cast<double>(width)) +
                       (residual ? add.start()[at + i] : 0.0);
  }
  expect_close("inv_rms", inv.host(), ref_inv, DType::f32);
  expect_close("y", y.host(), ref_y, dtype);
  RmsNormBackwardArgs b{residual ? sum.data() : x.data(),
                        weight.data(),
                        inv.floats(),
                        grad_y.data(),
                        residual ? add.data() : nullptr,
                        grad_s.data(),
                        grad_weight.floats(),
                        rows,
                        width,
                        dtype};
  rms_norm_backward(b, nullptr);
  expect_close("grad_s", grad_s.host(), ref_gs, dtype);
  const std::vector<double> first = grad_weight.host();
  expect_close("grad_weight", first, ref_gw, DType::f32);
  rms_norm_backward(b, nullptr);
  EXPECT_EQ(grad_weight.host(), first) << "two runs differ";
}

TEST(CudaNorm, agrees_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    for (const bool residual : {false, true}) {
      for (const int64_t width : {3, 7, 64, 96, 384, 1024, 2048, 4096, 8192})
        check_norm(dtype, offset, 37, width, residual);
      check_norm(dtype, offset, 1, 128, residual);
      check_norm(dtype, offset, 3, 20000, residual);
      check_norm(dtype, offset, 4099, 64, residual);
    }
  });
}

TEST(CudaNorm, no_rows_give_a_zero_weight_gradient) {
  MOEBIUS_NEEDS_DEVICE();
  const Values weight = Values::normal(DType::f32, 64, 1), grad_weight(DType::f32, 64);
  RmsNormBackwardArgs b{nullptr, weight.data(),        nullptr, nullptr, nullptr,
                        nullptr, grad_weight.floats(), 0,       64,      DType::f32};
  rms_norm_backward(b, nullptr);
  EXPECT_EQ(grad_weight.host(), std::vector<double>(64, 0.0));
}

}  // namespace
}  // namespace moebius::kernels::cuda
