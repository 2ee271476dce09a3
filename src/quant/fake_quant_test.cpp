#include "quant/fake_quant.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/parallel.h"
#include "quant/format.h"
#include "quant/range.h"

namespace moebius::quant {
namespace {

at::Tensor leaf(const at::Tensor& values) {
  return values.clone().set_requires_grad(true);
}

TEST(FakeQuant, hard_rounding_gives_the_values_of_the_codes) {
  at::manual_seed(1);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int bits : {4, 6, 8}) {
      const at::Tensor x = at::randn({7, 33}).to(dtype);
      const at::Tensor step = scales_of(range_of(x, Granularity::per_row) * 0.7, bits);
      FakeQuantOptions options;
      options.bits = bits;
      const at::Tensor expected = rounded_to_codes(x, step, bits);
      EXPECT_TRUE(at::equal(fake_quantise(x, step, options), expected));
      // The paths that keep something for the backward pass.
      EXPECT_TRUE(at::equal(fake_quantise(leaf(x), leaf(step), options).detach(), expected));
    }
}

TEST(FakeQuant, gradients_are_those_of_the_published_formulas) {
  const at::Tensor x = leaf(at::tensor({-3.0f, -0.6f, 0.2f, 0.5f, 10.0f})), step = leaf(at::tensor({0.5f}));
  FakeQuantOptions options;
  options.bits = 3;  // -3 ... 3
  options.step_gradient_scale = 0.25;
  const at::Tensor y = fake_quantise(x, step, options);
  EXPECT_TRUE(at::allclose(y, at::tensor({-1.5f, -0.5f, 0.0f, 0.5f, 1.5f}))) << y;
  const at::Tensor grad = at::tensor({1.0f, 2.0f, 3.0f, 4.0f, 5.0f});
  y.backward(grad);
  // Clipped values pass nothing on and push the step by the limit; the others pull by their rounding error.
  EXPECT_TRUE(at::allclose(x.grad(), at::tensor({0.0f, 2.0f, 3.0f, 4.0f, 0.0f}))) << x.grad();
  const float expected = -3 * 1 + 0.2f * 2 + -0.4f * 3 + 0 * 4 + 3 * 5;
  EXPECT_NEAR(step.grad().item<float>(), 0.25f * expected, 1e-5);
}

TEST(FakeQuant, gradients_are_the_slopes_of_what_stands_in_for_rounding) {
  at::manual_seed(2);
  const at::Tensor x = at::randn({6, 40}), step = at::full({6, 1}, 0.11f), grad = at::randn({6, 40});
  FakeQuantOptions options;
  options.bits = 5;
  for (const double share : {0.0, 0.5, 1.0}) {
    if (share > 0) options.noise = NoisePlan{{7, "w", 3}, NoiseKind::uniform, share};
    const at::Tensor x_leaf = leaf(x), step_leaf = leaf(step);
    const at::Tensor y = fake_quantise(x_leaf, step_leaf, options);
    y.backward(grad);
    // y = s clamp(x / s) + s e with the error e in steps held fixed: differences of that, in double
    // precision.
    const double limit = 15;
    const at::Tensor q = x.to(at::kDouble) / step.to(at::kDouble);
    const at::Tensor error = y.detach().to(at::kDouble) / step.to(at::kDouble) - q.clamp(-limit, limit);
    const auto surrogate = [&](const at::Tensor& values, const at::Tensor& s) {
      return ((values / s).clamp(-limit, limit) + error) * s;
    };
    const double h = 1e-6;
    const at::Tensor xd = x.to(at::kDouble), sd = step.to(at::kDouble), gd = grad.to(at::kDouble);
    const at::Tensor by_x = (surrogate(xd + h, sd) - surrogate(xd - h, sd)) / (2 * h) * gd;
    const at::Tensor by_s = ((surrogate(xd, sd + h) - surrogate(xd, sd - h)) / (2 * h) * gd).sum(1, true);
    EXPECT_TRUE(at::allclose(x_leaf.grad().to(at::kDouble), by_x, 1e-4, 1e-4)) << share;
    EXPECT_TRUE(at::allclose(step_leaf.grad().to(at::kDouble), by_s, 1e-3, 1e-3)) << share;
  }
}

TEST(FakeQuant, noise_is_one_step_wide_and_takes_its_share) {
  for (const double share : {0.25, 0.5, 1.0}) {
    const Noise noise = draw_noise({5, "a.weight", 9}, NoiseKind::uniform, share, {300, 200}, at::kCPU);
    EXPECT_LE(noise.values.abs().max().item<float>(), 0.5f);
    EXPECT_NEAR(noise.values.mean().item<float>(), 0, 0.005);
    EXPECT_NEAR(noise.values.square().mean().item<float>(), 1.0 / 12, 0.001);
    EXPECT_EQ(noise.taken.defined(), share < 1);
    if (noise.taken.defined()) {
      EXPECT_NEAR(noise.taken.to(at::kFloat).mean().item<float>(), share, 0.01);
      // The choice says nothing of the noise.
      EXPECT_NEAR(noise.values.masked_select(noise.taken).mean().item<float>(), 0, 0.01);
    }
  }
  const Noise gaussian = draw_noise({5, "a.weight", 9}, NoiseKind::gaussian, 0.5, {300, 200}, at::kCPU);
  EXPECT_NEAR(gaussian.values.std().item<float>(), 0.1, 0.002);
  EXPECT_NEAR(gaussian.taken.to(at::kFloat).mean().item<float>(), 0.5, 0.01);
}

TEST(FakeQuant, noise_depends_on_its_key_alone) {
  const int threads = num_threads();
  for (const NoiseKind kind : {NoiseKind::uniform, NoiseKind::gaussian}) {
    const auto draw = [&](const NoiseKey& key) { return draw_noise(key, kind, 0.5, {501, 67}, at::kCPU); };
    const Noise noise = draw({1, "w", 4});
    set_num_threads(1);
    const Noise alone = draw({1, "w", 4});
    set_num_threads(threads);
    EXPECT_TRUE(at::equal(noise.values, alone.values) && at::equal(noise.taken, alone.taken));
    for (const NoiseKey& other : {NoiseKey{2, "w", 4}, NoiseKey{1, "v", 4}, NoiseKey{1, "w", 5}}) {
      EXPECT_FALSE(at::equal(noise.values, draw(other).values));
      EXPECT_FALSE(at::equal(noise.taken, draw(other).taken));
    }
  }
}

TEST(FakeQuant, noise_takes_the_place_of_rounding_on_its_share) {
  at::manual_seed(3);
  const at::Tensor x = at::randn({64, 64});
  const at::Tensor step = scales_of(range_of(x, Granularity::per_row), 4);
  FakeQuantOptions options;
  options.bits = 4;
  const at::Tensor hard = fake_quantise(x, step, options);
  options.noise = NoisePlan{{1, "w", 1}, NoiseKind::uniform, 0.25};
  const at::Tensor y = fake_quantise(x, step, options);
  EXPECT_NEAR(y.ne(hard).to(at::kFloat).mean().item<float>(), 0.25, 0.02);
  EXPECT_TRUE((y - x).abs().le(0.5001 * step).all().item<bool>());
}

TEST(FakeQuant, ranges_share_what_they_say) {
  at::manual_seed(4);
  const at::Tensor w = at::randn({3, 8, 50});
  EXPECT_TRUE(at::equal(chosen_range(w, Sharing::row, {}), w.abs().amax(2, true)));
  EXPECT_TRUE(at::equal(chosen_range(w, Sharing::matrix, {}), w.abs().amax({1, 2}, true)));
  EXPECT_TRUE(at::equal(chosen_range(w, Sharing::all, {}), w.abs().amax()));
  EXPECT_EQ(chosen_range(w[0], Sharing::matrix, {}).dim(), 0);
  EXPECT_EQ(chosen_range(at::zeros({0, 4}), Sharing::all, {}).item<float>(), 0);

  RangeOptions percentile{RangeRule::percentile, 0.9, 8};
  const at::Tensor ninth = std::get<0>(w[0][0].abs().sort())[44];  // of 50, 45 are inside
  EXPECT_EQ(chosen_range(w, Sharing::row, percentile)[0][0][0].item<float>(), ninth.item<float>());
}

TEST(FakeQuant, the_mse_range_has_the_least_error_of_all_that_are_tried) {
  at::manual_seed(5);
  at::Tensor x = at::randn({4, 500});
  x[0][0] = 12;  // an outlier is worth clipping at four bits
  const RangeOptions options{RangeRule::mse, 0, 4};
  const at::Tensor range = chosen_range(x, Sharing::row, options);
  const auto error = [&](const at::Tensor& r) {
    return (rounded_to_codes(x, scales_of(r, 4), 4) - x).square().mean(1);
  };
  EXPECT_LT(range[0].item<float>(), 10);
  for (int i = 0; i < kNumRanges; ++i)
    EXPECT_TRUE(error(range).le(error(x.abs().amax(1, true) * (1 - 0.025 * i)) + 1e-9).all().item<bool>())
        << i;
}

}  // namespace
}  // namespace moebius::quant
