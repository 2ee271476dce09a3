#include "cli/layer_timing.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "ops/device.h"
#include "train/counted_memory.h"

namespace moebius::cli {
namespace {

constexpr double kWarmUpMs = 50, kMeasureMs = 200;
constexpr int kEstimateCalls = 5;
constexpr int64_t kCacheBytes = int64_t{256} << 20;  // larger than any second-level cache
constexpr auto kPause = std::chrono::milliseconds(500);

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double host_ms(const std::function<void()>& call) {
  const double begin = steady_seconds();
  call();
  return 1e3 * (steady_seconds() - begin);
}

double median_on_cpu(const std::function<void()>& call, int repeats) {
  for (double spent = 0; spent < kWarmUpMs;) spent += host_ms(call);
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) times.push_back(host_ms(call));
  return median(std::move(times));
}

// Milliseconds on the device of each of `count` calls queued one after the other.
std::vector<double> times_on_device(const std::function<void()>& call, int count, at::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream stream = guard.getStream(device);
  const at::Tensor cache = at::empty({kCacheBytes}, at::TensorOptions(at::kByte).device(device));
  std::vector<c10::Event> begin, end;
  for (int i = 0; i < count; ++i) {
    begin.emplace_back(device.type(), c10::EventFlag::BACKEND_DEFAULT);
    end.emplace_back(device.type(), c10::EventFlag::BACKEND_DEFAULT);
    cache.zero_();
    begin.back().record(stream);
    call();
    end.back().record(stream);
  }
  ops::cuda_plugin()->synchronize(device.index());
  std::vector<double> times;
  for (size_t i = 0; i < begin.size(); ++i) times.push_back(begin[i].elapsedTime(end[i]));
  return times;
}

double median_on_device(const std::function<void()>& call, int repeats, at::Device device) {
  call();
  ops::cuda_plugin()->synchronize(device.index());
  std::this_thread::sleep_for(kPause);
  const double one = std::max(median(times_on_device(call, kEstimateCalls, device)), 1e-3);
  const auto calls_in = [&](double ms) { return static_cast<int>(std::ceil(ms / one)); };
  for (int i = calls_in(kWarmUpMs); i > 0; --i) call();
  return median(times_on_device(call, std::max(repeats, calls_in(kMeasureMs)), device));
}

}  // namespace

struct MemoryMeter::Counted {
  train::CountedMemory memory;
};

MemoryMeter::MemoryMeter(at::Device device) : device_(device) {
  if (device.is_cpu()) {
    counted_ = std::make_unique<Counted>();
    before_ = counted_->memory.current_bytes();
    return;
  }
  ops::cuda_plugin()->synchronize(device.index());
  ops::cuda_plugin()->reset_peak_memory(device.index());
  before_ = ops::cuda_plugin()->device_memory(device.index()).allocated_bytes;
}

MemoryMeter::~MemoryMeter() = default;

int64_t MemoryMeter::held_bytes() const {
  return (counted_ ? counted_->memory.current_bytes()
                   : ops::cuda_plugin()->device_memory(device_.index()).allocated_bytes) -
         before_;
}

int64_t MemoryMeter::peak_bytes() const {
  return (counted_ ? counted_->memory.peak_bytes()
                   : ops::cuda_plugin()->device_memory(device_.index()).peak_allocated_bytes) -
         before_;
}

double median_call_ms(const std::function<void()>& call, int repeats, at::Device device) {
  MOEBIUS_CHECK_GE(repeats, 1);
  return device.is_cpu() ? median_on_cpu(call, repeats) : median_on_device(call, repeats, device);
}

double mean_call_ms(const std::function<void()>& call, double seconds, at::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream stream = guard.getStream(device);
  call();
  const double one = std::max(median(times_on_device(call, 3, device)), 1e-3);
  const int count = static_cast<int>(std::ceil(1e3 * seconds / one));
  c10::Event begin(device.type(), c10::EventFlag::BACKEND_DEFAULT),
      end(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  for (int i = 0; i < count; ++i) call();
  begin.record(stream);
  for (int i = 0; i < count; ++i) call();
  end.record(stream);
  ops::cuda_plugin()->synchronize(device.index());
  return begin.elapsedTime(end) / count;
}

LayerTimes time_layer(const LayerPasses& passes, int repeats, at::Device device) {
  LayerTimes times;
  const bool has_backward = !passes.output_grads.empty();
  times.forward_ms = times.total_ms = median_call_ms([&] { passes.forward(); }, repeats, device);
  const auto backward = [&](const std::vector<at::Tensor>& outputs) {
    return torch::autograd::grad(outputs, passes.leaves, passes.output_grads);
  };
  if (has_backward) times.total_ms = median_call_ms([&] { backward(passes.forward()); }, repeats, device);
  const MemoryMeter memory(device);
  {
    const std::vector<at::Tensor> outputs = passes.forward();
    times.held_bytes = memory.held_bytes();
    if (has_backward) backward(outputs);
  }
  times.peak_bytes = memory.peak_bytes();
  return times;
}

Ceilings measure_ceilings(at::ScalarType dtype, at::Device device) {
  const at::NoGradGuard no_grad;
  const int64_t size = device.is_cpu() ? 1024 : 8192;
  const int64_t copied = device.is_cpu() ? int64_t{64} << 20 : int64_t{1} << 30;
  constexpr int kRepeats = 5;
  Ceilings ceilings;
  {
    const auto options = at::TensorOptions(dtype).device(device);
    const at::Tensor a = at::randn({size, size}, options), b = at::randn({size, size}, options);
    at::Tensor c = at::empty({size, size}, options);
    const double n = static_cast<double>(size);
    ceilings.flops = 2 * n * n * n / (1e-3 * median_call_ms([&] { at::mm_out(c, a, b); }, kRepeats, device));
  }
  const auto bytes = at::TensorOptions(at::kByte).device(device);
  const at::Tensor from = at::empty({copied}, bytes).zero_();
  at::Tensor to = at::empty({copied}, bytes);
  const double ms = median_call_ms([&] { to.copy_(from); }, kRepeats, device);
  ceilings.bytes = 2 * static_cast<double>(copied) / (1e-3 * ms);
  return ceilings;
}

}  // namespace moebius::cli
