#include "quant/noise.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "base/philox.h"

namespace moebius::quant {
namespace {

constexpr double kGaussianStd = 0.1;
constexpr int64_t kGrain = 4096;  // blocks of four elements

// body(block, first element of it, one behind its last) for the blocks of `count` elements.
template <class Body>
void for_blocks(int64_t count, const Body& body) {
  parallel_for(0, (count + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b, 4 * b, std::min(count, 4 * b + 4));
  });
}

// A word serves one element: the upper half is the noise, the lower one decides whether it is taken.
void draw_uniform(const Philox& random, uint32_t threshold, int64_t count, float* values, bool* taken) {
  for_blocks(count, [&](int64_t b, int64_t begin, int64_t end) {
    const PhiloxCounter words = random.block(static_cast<uint64_t>(b));
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t word = words[static_cast<size_t>(i - begin)];
      values[i] = (static_cast<float>(word >> 16) - 32767.5f) * 0x1p-16f;
      if (taken != nullptr) taken[i] = (word & 0xFFFFu) < threshold;
    }
  });
}

void draw_gaussian(const Philox& random, const Philox& choice, uint32_t threshold, int64_t count,
                   float* values, bool* taken) {
  for_blocks(count, [&](int64_t b, int64_t begin, int64_t end) {
    random.fill_normal({values + begin, static_cast<size_t>(end - begin)}, static_cast<uint64_t>(begin));
    const PhiloxCounter words = taken != nullptr ? choice.block(static_cast<uint64_t>(b)) : PhiloxCounter{};
    for (int64_t i = begin; i < end; ++i) {
      values[i] *= static_cast<float>(kGaussianStd);
      if (taken != nullptr) taken[i] = (words[static_cast<size_t>(i - begin)] & 0xFFFFu) < threshold;
    }
  });
}

// By the device's own generator, begun anew for each key.
Noise draw_on_device(const NoiseKey& key, NoiseKind kind, double share, at::IntArrayRef sizes,
                     at::Device device) {
  at::Generator generator =
      at::globalContext().getAcceleratorHooksInterface(device.type()).getNewGenerator(device.index());
  generator.set_current_seed(Philox(key.seed, "noise " + key.name, key.pass).bits64(0));
  Noise noise;
  noise.values = at::empty(sizes, at::TensorOptions().dtype(at::kFloat).device(device));
  if (kind == NoiseKind::uniform) {
    noise.values.uniform_(-0.5, 0.5, generator);
  } else {
    noise.values.normal_(0, kGaussianStd, generator);
  }
  if (share < 1)
    noise.taken =
        at::empty(sizes, at::TensorOptions().dtype(at::kBool).device(device)).bernoulli_(share, generator);
  return noise;
}

}  // namespace

Noise draw_noise(const NoiseKey& key, NoiseKind kind, double share, at::IntArrayRef sizes,
                 at::Device device) {
  if (!device.is_cpu()) return draw_on_device(key, kind, std::clamp(share, 0.0, 1.0), sizes, device);
  const auto threshold = static_cast<uint32_t>(std::lround(std::clamp(share, 0.0, 1.0) * 65536));
  Noise noise;
  noise.values = at::empty(sizes, at::TensorOptions().dtype(at::kFloat));
  if (threshold < 65536) noise.taken = at::empty(sizes, at::TensorOptions().dtype(at::kBool));
  auto* const values = noise.values.mutable_data_ptr<float>();
  bool* const taken = noise.taken.defined() ? noise.taken.mutable_data_ptr<bool>() : nullptr;
  const Philox random(key.seed, "noise " + key.name, key.pass);
  if (kind == NoiseKind::uniform) {
    draw_uniform(random, threshold, noise.values.numel(), values, taken);
  } else {
    const Philox choice(key.seed, "noise choice " + key.name, key.pass);
    draw_gaussian(random, choice, threshold, noise.values.numel(), values, taken);
  }
  return noise;
}

}  // namespace moebius::quant
