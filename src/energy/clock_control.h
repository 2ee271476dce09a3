// Locking a GPU's clocks. This is the only place in the project that changes anything on a GPU;
// moebius-powerd is what uses it (energy/powerd/), and the driver lets only root do it. Locked clocks are
// used, since application clocks are deprecated (NVML's deprecations of CUDA 13). Thread-safe as NVML is.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "energy/nvml.h"

namespace moebius::energy {

// The supported clock nearest to `mhz`, the lower one of two; `supported` ascending and not empty.
int nearest_clock(const std::vector<int>& supported, int mhz);

// Seconds until the SM clock reads within 2 % of `mhz`; an error of kind kTimeout when it does not within
// `longest_seconds` (a target that the GPU does not hold: power, heat, or a change that was swallowed). Only
// reads.
Result<double> wait_for_clock(const NvmlDevice& device, int mhz, double longest_seconds);

class ClockControl {
 public:
  explicit ClockControl(NvmlDevice device) : device_(std::move(device)) {}

  // Both bounds at `mhz`, which must be a clock of the GPU: an error of kind kInvalid names the nearest one
  // otherwise. The clock is reached some milliseconds later (wait_for_clock).
  Result<void> lock(int mhz) const;
  // As the driver chooses again.
  Result<void> reset() const;
  const NvmlDevice& device() const { return device_; }

 private:
  NvmlDevice device_;
};

}  // namespace moebius::energy
