// Noise that stands in for rounding while a model trains. A draw is a pure function of its key: it does not
// depend on the number of threads, is the same on every rank with the same kind of device, and a resumed run
// or a recomputed layer draws what the first one drew (base/philox.h on the CPU, libtorch's generator of the
// device elsewhere).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace moebius::quant {

struct NoiseKey {
  uint64_t seed = 0;
  std::string name;   // of the tensor
  uint64_t pass = 0;  // step and micro-batch, see FakeQuantiser
};

enum class NoiseKind : uint8_t {
  uniform,  // one step wide around 0: the variance of a rounding error, step^2 / 12 (Defossez et al. 2021,
            // "DiffQ")
  gaussian  // 0.1 N(0, 1) steps
};

struct Noise {
  at::Tensor values;  // fp32, in steps of the grid
  at::Tensor taken;   // bool: elements that get noise instead of rounding; undefined: all
};

// Noise for a tensor of these sizes. Each element is taken with probability `share` (to 2^-16),
// independently. Drawn where it is used, without waiting.
Noise draw_noise(const NoiseKey& key, NoiseKind kind, double share, at::IntArrayRef sizes, at::Device device);

}  // namespace moebius::quant
