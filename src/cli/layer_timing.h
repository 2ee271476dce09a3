// Times and memory of a layer's passes, and what the device reaches at most, for `moebius bench moe_layer`
// and its kin.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace moebius::cli {

// Bytes of tensors on a device above those at construction. On the CPU the tensors made in the meantime
// count; one object at a time.
class MemoryMeter {
 public:
  explicit MemoryMeter(at::Device device);
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  int64_t held_bytes() const;
  int64_t peak_bytes() const;  // since construction

 private:
  struct Counted;
  at::Device device_;
  std::unique_ptr<Counted> counted_;  // on the CPU
  int64_t before_ = 0;
};

// Medians of calls one by one, in milliseconds. On a GPU as Triton's do_bench measures, which the peers use:
// warm-up of 50 ms, calls for 200 ms but at least `repeats` of them, events around each, the second-level
// cache cleared before each, and half a second of pause ahead of it all so that every case begins with a card
// as cool. On the CPU a warm-up of 50 ms and `repeats` calls.
double median_call_ms(const std::function<void()>& call, int repeats, at::Device device);

// Milliseconds of a call on average, the calls queued without a pause for `seconds` after as long a warm-up:
// what a long run sees, since a GPU at its power limit clocks lower after some tenths of a second. Not on the
// CPU.
double mean_call_ms(const std::function<void()>& call, double seconds, at::Device device);

// A layer's forward pass (recorded for the backward pass) and what is differentiated.
struct LayerPasses {
  std::function<std::vector<at::Tensor>()> forward;  // outputs, one for each of output_grads
  std::vector<at::Tensor> output_grads;              // empty: the layer has no backward pass
  std::vector<at::Tensor> leaves;                    // whose gradients the backward pass makes
};

struct LayerTimes {
  double forward_ms = 0;
  double total_ms = 0;     // forward and backward; forward_ms without a backward pass
  int64_t held_bytes = 0;  // between forward and backward, outputs included
  int64_t peak_bytes = 0;  // beyond the inputs, gradients included
};

LayerTimes time_layer(const LayerPasses& passes, int repeats, at::Device device);

// What this device reaches now: a large matrix product of the dtype, and a copy (bytes read and written).
// Against these a layer's roofline bound is max(flops / product, bytes / copy).
struct Ceilings {
  double flops = 0, bytes = 0;  // a second
};

Ceilings measure_ceilings(at::ScalarType dtype, at::Device device);

}  // namespace moebius::cli
