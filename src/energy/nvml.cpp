#include "energy/nvml.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "energy/nvml_library.h"

namespace moebius::energy {

using namespace nvml_api;  // NOLINT: its names are used throughout

const char* power_scope_name(PowerScope scope) {
  return scope == PowerScope::kGpu ? "GPU" : "module";
}

std::vector<std::string> clock_event_names(uint64_t reasons) {
  constexpr const char* kNames[] = {"gpu_idle",
                                    "applications_clocks_setting",
                                    "sw_power_cap",
                                    "hw_slowdown",
                                    "sync_boost",
                                    "sw_thermal_slowdown",
                                    "hw_thermal_slowdown",
                                    "hw_power_brake_slowdown",
                                    "display_clock_setting"};
  std::vector<std::string> names;
  for (uint64_t rest = reasons; rest != 0; rest &= rest - 1) {
    const auto bit = static_cast<size_t>(std::countr_zero(rest));
    names.push_back(bit < std::size(kNames) ? kNames[bit] : concat("reason_", bit));
  }
  return names;
}

NvmlDevice::NvmlDevice(std::shared_ptr<const NvmlLibrary> library, void* handle)
    : library_(std::move(library)), handle_(handle) {}

Result<std::string> NvmlDevice::name() const {
  return library_->text(library_->name, handle_);
}

Result<std::string> NvmlDevice::uuid() const {
  return library_->text(library_->uuid, handle_);
}

Result<std::string> NvmlDevice::pci_bus_id() const {
  PciInfo info{};
  if (const auto called = library_->call(library_->pci_info, handle_, &info); !called) return called.error();
  return std::string(info.bus_id);
}

Result<ComputeCapability> NvmlDevice::compute_capability() const {
  ComputeCapability capability;
  if (const auto called =
          library_->call(library_->compute_capability, handle_, &capability.major, &capability.minor);
      !called)
    return called.error();
  return capability;
}

Result<GpuMemory> NvmlDevice::memory() const {
  MemoryInfo info{};
  if (const auto called = library_->call(library_->memory_info, handle_, &info); !called)
    return called.error();
  return GpuMemory{static_cast<int64_t>(info.total), static_cast<int64_t>(info.free)};
}

Result<double> NvmlDevice::total_energy_joules() const {
  unsigned long long millijoules = 0;
  if (const auto called = library_->call(library_->total_energy, handle_, &millijoules); !called)
    return called.error();
  return static_cast<double>(millijoules) / 1e3;
}

Result<PowerReading> NvmlDevice::power(unsigned field) const {
  std::optional<Error> error;
  for (const PowerScope scope : {PowerScope::kGpu, PowerScope::kModule}) {
    FieldValue value{};
    value.field = field;
    value.scope = static_cast<unsigned>(scope);
    if (const auto called = library_->call(library_->field_values, handle_, 1, &value); !called)
      return called.error();
    const auto milliwatts = number_of(value);
    if (value.status == kSuccess && milliwatts) return PowerReading{*milliwatts / 1e3, scope};
    if (!error)
      error = library_->failure("nvmlDeviceGetFieldValues(power)",
                                value.status == kSuccess ? kNotSupported : value.status);
  }
  return *error;
}

Result<PowerReading> NvmlDevice::instant_power() const {
  return power(kInstantPowerField);
}

Result<PowerReading> NvmlDevice::average_power() const {
  auto average = power(kAveragePowerField);
  if (average || average.error().kind != ErrorKind::kUnsupported) return average;
  // Drivers before 535 have no such field.
  unsigned milliwatts = 0;
  if (const auto called = library_->call(library_->power_usage, handle_, &milliwatts); !called)
    return called.error();
  return PowerReading{milliwatts / 1e3, PowerScope::kGpu};
}

Result<double> NvmlDevice::power_limit_watts() const {
  unsigned milliwatts = 0;
  if (const auto called = library_->call(library_->power_limit, handle_, &milliwatts); !called)
    return called.error();
  return milliwatts / 1e3;
}

Result<int> NvmlDevice::clock_mhz(ClockDomain domain) const {
  unsigned mhz = 0;
  if (const auto called = library_->call(library_->clock_info, handle_, static_cast<int>(domain), &mhz);
      !called)
    return called.error();
  return static_cast<int>(mhz);
}

Result<std::vector<int>> NvmlDevice::supported_clocks_mhz() const {
  unsigned memory[64] = {}, num_memory = 64;
  if (const auto called = library_->call(library_->supported_memory_clocks, handle_, &num_memory, memory);
      !called)
    return called.error();
  std::vector<unsigned> graphics(1024);
  auto count = static_cast<unsigned>(graphics.size());
  const unsigned highest = *std::max_element(memory, memory + num_memory);
  if (const auto called =
          library_->call(library_->supported_graphics_clocks, handle_, highest, &count, graphics.data());
      !called)
    return called.error();
  std::vector<int> clocks(graphics.begin(), graphics.begin() + count);
  std::sort(clocks.begin(), clocks.end());
  return clocks;
}

Result<uint64_t> NvmlDevice::clock_event_reasons() const {
  unsigned long long reasons = 0;
  const auto& function =
      library_->clock_events.call != nullptr ? library_->clock_events : library_->throttle_reasons;
  if (const auto called = library_->call(function, handle_, &reasons); !called) return called.error();
  return static_cast<uint64_t>(reasons);
}

Result<int> NvmlDevice::temperature_celsius() const {
  Temperature reading{kTemperatureVersion1, kGpuSensor, 0};
  if (library_->temperature_v.call != nullptr) {
    if (const auto called = library_->call(library_->temperature_v, handle_, &reading); !called)
      return called.error();
    return reading.celsius;
  }
  unsigned celsius = 0;
  if (const auto called = library_->call(library_->temperature, handle_, kGpuSensor, &celsius); !called)
    return called.error();
  return static_cast<int>(celsius);
}

Result<Utilisation> NvmlDevice::utilisation() const {
  UtilisationRates percent{};
  if (const auto called = library_->call(library_->utilisation, handle_, &percent); !called)
    return called.error();
  return Utilisation{percent.gpu / 100.0, percent.memory / 100.0};
}

Result<bool> NvmlDevice::mig_enabled() const {
  unsigned current = 0, pending = 0;
  const auto called = library_->call(library_->mig_mode, handle_, &current, &pending);
  if (called) return current != 0;
  if (called.error().kind == ErrorKind::kUnsupported) return false;  // a card that cannot be split
  return called.error();
}

Nvml::Nvml(std::shared_ptr<const NvmlLibrary> library) : library_(std::move(library)) {}

Result<Nvml> Nvml::open(const std::string& file) {
  const auto library = std::make_shared<NvmlLibrary>(file);
  if (!library->loaded())
    return make_error(ErrorKind::kNotFound, "no NVIDIA driver is installed (", file,
                      " is missing); with an NVIDIA GPU install the driver, version 580 or newer; in a "
                      "container start it with the NVIDIA container toolkit (--gpus all)");
  switch (const Status status = library->start()) {
    case kSuccess:
      return Nvml(library);
    case kDriverNotLoaded:
      return make_error(ErrorKind::kUnavailable,
                        "the NVIDIA driver is installed but not loaded; try: sudo modprobe nvidia");
    case kLibraryMismatch:
      return make_error(
          ErrorKind::kUnavailable,
          "the NVIDIA kernel module and its libraries are of different versions; reboot after the driver's "
          "update");
    default:
      return make_error(kind_of(status), "NVML did not start (status ", status,
                        "); `nvidia-smi` may say more");
  }
}

Result<std::string> Nvml::driver_version() const {
  return library_->text(library_->driver_version);
}

Result<int> Nvml::cuda_version() const {
  int version = 0;
  if (const auto called = library_->call(library_->cuda_version, &version); !called) return called.error();
  return version;
}

Result<int> Nvml::num_devices() const {
  unsigned count = 0;
  if (const auto called = library_->call(library_->device_count, &count); !called) return called.error();
  return static_cast<int>(count);
}

Result<NvmlDevice> Nvml::device(int index) const {
  Handle handle = nullptr;
  if (const auto called = library_->call(library_->device_by_index, static_cast<unsigned>(index), &handle);
      !called)
    return called.error();
  return NvmlDevice(library_, handle);
}

Result<NvmlDevice> Nvml::device_at(const std::string& pci_bus_id) const {
  Handle handle = nullptr;
  if (const auto called = library_->call(library_->device_by_pci, pci_bus_id.c_str(), &handle); !called)
    return make_error(called.error().kind, "PCI address ", pci_bus_id, ": ", called.error().message);
  return NvmlDevice(library_, handle);
}

}  // namespace moebius::energy
