#include <algorithm>
#include <cmath>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

void check_loss(DType dtype, int64_t offset, int64_t rows, int64_t vocab, bool in_place) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(vocab));
  const Values logits = Values::normal(dtype, rows * vocab, 1, 3.0, offset),
               other(dtype, rows * vocab, offset);
  const Values loss(DType::f32, rows), scale(DType::f32, std::vector<double>{0.125});
  std::vector<int64_t> targets(static_cast<size_t>(rows));
  for (size_t r = 0; r < targets.size(); ++r)
    targets[r] = r % 4 == 3 ? kIgnoredTarget : static_cast<int64_t>(r * 7919 + 5) % vocab;
  const Integers<int64_t> device_targets(targets);
  const Values& grad = in_place ? logits : other;
  cross_entropy(
      {logits.data(), device_targets.data(), loss.floats(), nullptr, scale.floats(), rows, vocab, dtype},
      nullptr);
  const std::vector<double> loss_only = loss.host();
  cross_entropy(
      {logits.data(), device_targets.data(), loss.floats(), grad.data(), scale.floats(), rows, vocab, dtype},
      nullptr);
  std::vector<double> ref_loss(targets.size()), ref_grad(static_cast<size_t>(rows * vocab));
  for (size_t r = 0; r < targets.size(); ++r) {
    if (targets[r] == kIgnoredTarget) continue;
    const double* x = logits.start().data() + r * static_cast<size_t>(vocab);
    double max = x[0], sum = 0.0;
    for (int64_t i = 0; i < vocab; ++i) max = std::max(max, x[i]);
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(x[i] - max);
    ref_loss[r] = max + std::log(sum) - x[targets[r]];
    for (int64_t i = 0; i < vocab; ++i)
      ref_grad[r * static_cast<size_t>(vocab) + static_cast<size_t>(i)] =
          0.125 * (std::exp(x[i] - max) / sum - (i == targets[r] ? 1.0 : 0.0));
  }
  expect_close("loss", loss.host(), ref_loss, DType::f32);
  EXPECT_EQ(loss.host(), loss_only);
  expect_close("grad", grad.host(), ref_grad, dtype);
}

TEST(CudaLoss, agrees_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    for (const int64_t vocab : {2, 7, 256, 1000, 4096, 8000, 16384, 32000, 50257, 65536, 151936})
      check_loss(dtype, offset, 9, vocab, offset == 0);
  });
}

TEST(CudaLoss, a_target_outside_the_vocabulary_makes_its_row_not_a_number) {
  MOEBIUS_NEEDS_DEVICE();
  const Values logits = Values::normal(DType::f32, 2 * 16, 1), grad(DType::f32, 2 * 16), loss(DType::f32, 2);
  const Values scale(DType::f32, std::vector<double>{1.0});
  const Integers<int64_t> targets(std::vector<int64_t>{16, 3});
  cross_entropy(
      {logits.data(), targets.data(), loss.floats(), grad.data(), scale.floats(), 2, 16, DType::f32},
      nullptr);
  EXPECT_TRUE(std::isnan(loss.host()[0]));
  EXPECT_TRUE(std::isnan(grad.host()[0]));
  EXPECT_FALSE(std::isnan(loss.host()[1]));
}

}  // namespace
}  // namespace moebius::kernels::cuda
