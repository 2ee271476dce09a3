#include "ops/cases/timing.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/check.h"
#include "base/clock.h"
#include "ops/cases/run.h"
#include "ops/device.h"

namespace moebius::ops::cases {
namespace {

constexpr double kShortestMeasurementSeconds = 1e-3;
constexpr double kWarmUpSeconds = 0.05;

void wait_for(at::Device device) {
  if (device.is_cuda()) cuda_plugin()->synchronize(device.index());
}

double seconds_of(const std::function<void()>& call, int calls, at::Device device) {
  wait_for(device);
  const double begin = steady_seconds();
  for (int i = 0; i < calls; ++i) call();
  wait_for(device);
  return steady_seconds() - begin;
}

struct Median {
  double ms;
  int calls;
};

Median median_of(const std::function<void()>& call, int repeats, at::Device device) {
  double one = seconds_of(call, 1, device);
  for (double spent = one; spent < kWarmUpSeconds; spent += one) one = seconds_of(call, 1, device);
  const int calls = static_cast<int>(std::clamp(std::ceil(kShortestMeasurementSeconds / one), 1.0, 1000.0));
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) seconds.push_back(seconds_of(call, calls, device) / calls);
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return {*middle * 1e3, calls * repeats};
}

}  // namespace

Timing time_case(const OpCase& op_case, at::ScalarType dtype, at::Device device, int repeats) {
  MOEBIUS_CHECK_GE(repeats, 1);
  const Example example = example_of(op_case);
  const Tensors inputs = device_inputs(example, dtype, device);
  Timing timing;
  const Median forward = median_of(
      [&] {
        const at::NoGradGuard no_grad;
        example.op(inputs);
      },
      repeats, device);
  timing.forward_ms = timing.total_ms = forward.ms;
  timing.calls = forward.calls;
  Tensors leaves, output_grads;
  for (const at::Tensor& input : inputs)
    if (input.requires_grad()) leaves.push_back(input);
  for (const Output& output : example.op(inputs))
    if (output.value.requires_grad()) output_grads.push_back(at::ones_like(output.value));
  if (output_grads.empty()) return timing;
  const Median both = median_of(
      [&] {
        Tensors roots;
        for (const Output& output : example.op(inputs))
          if (output.value.requires_grad()) roots.push_back(output.value);
        torch::autograd::grad(roots, leaves, output_grads, {}, false, /*allow_unused=*/true);
      },
      repeats, device);
  timing.total_ms = both.ms;
  timing.has_backward = true;
  timing.calls = both.calls;
  return timing;
}

double rate(const Work& work, at::ScalarType dtype, double total_ms) {
  const double scale = work.unit == Work::Unit::elements ? static_cast<double>(c10::elementSize(dtype)) : 1.0;
  return (work.forward + work.backward) * scale / (total_ms * 1e-3);
}

}  // namespace moebius::ops::cases
