#include "energy/clock_control.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "base/clock.h"
#include "energy/nvml_library.h"

namespace moebius::energy {

namespace {
constexpr double kNear = 0.02;  // of the target: a clock that reads so is there
}

int nearest_clock(const std::vector<int>& supported, int mhz) {
  return *std::min_element(supported.begin(), supported.end(), [&](int a, int b) {
    return std::abs(a - mhz) != std::abs(b - mhz) ? std::abs(a - mhz) < std::abs(b - mhz) : a < b;
  });
}

Result<void> ClockControl::lock(int mhz) const {
  const auto supported = device_.supported_clocks_mhz();
  if (supported && !supported->empty() && !std::binary_search(supported->begin(), supported->end(), mhz))
    return make_error(ErrorKind::kInvalid, mhz, " MHz is not a clock of this GPU (", supported->front(),
                      " to ", supported->back(), " MHz); the nearest is ", nearest_clock(*supported, mhz),
                      " MHz");
  const NvmlLibrary& library = device_.nvml();
  const auto clock = static_cast<unsigned>(mhz);
  auto locked = library.call(library.set_gpu_locked_clocks, device_.handle_, clock, clock);
  if (!locked && locked.error().kind == ErrorKind::kPermission)
    return make_error(ErrorKind::kPermission, locked.error().message,
                      "; locking clocks needs root: run moebius-powerd as root");
  return locked;
}

Result<void> ClockControl::reset() const {
  const NvmlLibrary& library = device_.nvml();
  return library.call(library.reset_gpu_locked_clocks, device_.handle_);
}

Result<double> wait_for_clock(const NvmlDevice& device, int mhz, double longest_seconds) {
  const double begin = steady_seconds();
  int last = 0;
  while (true) {
    const auto now = device.clock_mhz(ClockDomain::kSm);
    if (!now) return now.error();
    last = *now;
    const double elapsed = steady_seconds() - begin;
    if (std::abs(last - mhz) <= kNear * mhz) return elapsed;
    if (elapsed >= longest_seconds)
      return make_error(ErrorKind::kTimeout, "the clock reads ", last, " MHz ", elapsed * 1e3,
                        " ms after it was locked to ", mhz, " MHz");
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

}  // namespace moebius::energy
