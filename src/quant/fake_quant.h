// Fake quantisation: values on the grid of the integer format, in floats, with gradients for training.
//   q = x / s, limit = 2^(bits - 1) - 1
//   y = s round(clamp(q, -limit, limit))
//   dy/dx = 1 inside the range, 0 where x is clipped                        (straight-through estimator)
//   dy/ds = round(q) - q inside, -limit below and limit above               (Esser et al. 2020, "LSQ", eq. 3)
// so clipped values push the range wider (as in Choi et al. 2018, "PACT", with range = limit s) and
// rounding errors pull on it. Where noise u takes the place of rounding, y = s (q + u) and dy/ds = u
// (Defossez et al. 2021, "DiffQ"; learned steps under noise: Shin et al. 2023, "NIPQ").
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "quant/noise.h"

namespace moebius::quant {

struct NoisePlan {
  NoiseKey key;
  NoiseKind kind = NoiseKind::uniform;
  double share = 1;
};

struct FakeQuantOptions {
  int bits = 8;
  // false: the steps are known to cover every value, so that dy/dx = 1 and nothing is kept for it.
  bool clips = true;
  // Factor on dy/ds; see lsq_gradient_scale.
  double step_gradient_scale = 1;
  std::optional<NoisePlan> noise;
};

// x: fp32 or bf16; step: fp32, broadcasts to x, 0 where all values are 0; differentiable in both. `carried`
// (fp32, undefined for none) is added to x first: the error of an earlier rounding. y has x's dtype. Hard
// rounding gives the values of rounded_to_codes (quant/format.h), bit for bit.
at::Tensor fake_quantise(const at::Tensor& x, const at::Tensor& step, const FakeQuantOptions& options,
                         const at::Tensor& carried = {});

// 1 / sqrt(n limit) for a step that n values share: keeps updates of steps in proportion to those of weights
// (Esser et al. 2020, section 2.2).
double lsq_gradient_scale(int64_t num_values, int bits);

}  // namespace moebius::quant
