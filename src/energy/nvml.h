// NVIDIA's management library NVML, loaded at run time: neither a driver nor a toolkit is needed to build.
// Everything here reads; nothing is set (clocks: energy/clock_control.h). A query that this driver, GPU or
// user may not make is a failed Result that names NVML's function and its answer. Thread-safe, as NVML is.
// Devices keep the library alive. (NVML API reference; its deprecations of CUDA 13 are kept to: the newer
// calls first, the older ones only where the driver lacks them.)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace moebius::energy {

inline constexpr char kNvmlLibrary[] = "libnvidia-ml.so.1";

// What a power reading covers: Grace Hopper modules, for one, answer only for GPU, CPU and memory together.
enum class PowerScope { kGpu, kModule };
const char* power_scope_name(PowerScope scope);  // "GPU", "module"

struct PowerReading {
  double watts = 0;
  PowerScope scope = PowerScope::kGpu;
};

enum class ClockDomain { kGraphics, kSm, kMemory };

struct GpuMemory {
  int64_t total_bytes = 0, free_bytes = 0;
};

struct ComputeCapability {
  int major = 0, minor = 0;
};

// Shares of the last sample period (1/6 s to 1 s, by GPU) in which the GPU ran a kernel and moved memory.
struct Utilisation {
  double gpu = 0, memory = 0;  // 0 to 1
};

// Names of the set bits of NVML's clock-event reasons ("sw_power_cap", "hw_thermal_slowdown", …): why the
// clocks are not higher. A bit without a name appears as its number.
std::vector<std::string> clock_event_names(uint64_t reasons);

class NvmlLibrary;  // the loaded library and its functions

class NvmlDevice {
 public:
  Result<std::string> name() const;
  Result<std::string> uuid() const;        // "GPU-…"
  Result<std::string> pci_bus_id() const;  // "00000000:3B:00.0", as the driver writes it
  Result<ComputeCapability> compute_capability() const;
  Result<GpuMemory> memory() const;

  // Of the whole card since the driver was loaded, Volta or newer. Its last digit is 1 mJ, but it advances in
  // steps of some tens of milliseconds.
  Result<double> total_energy_joules() const;
  // Now, and over the last second (Ampere and newer; GA100 gives the momentary one for both).
  Result<PowerReading> instant_power() const;
  Result<PowerReading> average_power() const;
  Result<double> power_limit_watts() const;  // the one in force

  Result<int> clock_mhz(ClockDomain domain) const;
  // Graphics clocks that can be locked, at the highest memory clock, ascending.
  Result<std::vector<int>> supported_clocks_mhz() const;
  Result<uint64_t> clock_event_reasons() const;  // bits; clock_event_names
  Result<int> temperature_celsius() const;
  Result<Utilisation> utilisation() const;
  // True when the card is split into instances: counters then hold the energy of all of them.
  Result<bool> mig_enabled() const;

 private:
  friend class Nvml;
  friend class ClockControl;
  NvmlDevice(std::shared_ptr<const NvmlLibrary> library, void* handle);
  Result<PowerReading> power(unsigned field) const;
  const NvmlLibrary& nvml() const { return *library_; }

  std::shared_ptr<const NvmlLibrary> library_;
  void* handle_;
};

class Nvml {
 public:
  // Loads and starts the library. The error says what is missing and the way out.
  static Result<Nvml> open(const std::string& library = kNvmlLibrary);

  Result<std::string> driver_version() const;  // "580.95.05"
  Result<int> cuda_version() const;            // the newest that the driver serves: 1000 * major + 10 * minor
  Result<int> num_devices() const;
  // By NVML's own order, which CUDA_VISIBLE_DEVICES does not change.
  Result<NvmlDevice> device(int index) const;
  // By PCI address, "0000:3b:00.0": how a CUDA device is found here.
  Result<NvmlDevice> device_at(const std::string& pci_bus_id) const;

 private:
  explicit Nvml(std::shared_ptr<const NvmlLibrary> library);
  std::shared_ptr<const NvmlLibrary> library_;
};

}  // namespace moebius::energy
