// The functions of NVML that are used, found in the loaded library, and the one way to call them. Only for
// the sources of this module.
#pragma once

#include <dlfcn.h>

#include <optional>
#include <string>

#include "base/result.h"

namespace moebius::energy {

namespace nvml_api {

// The few declarations of NVML's stable C interface that are used, after the NVML API reference.
using Status = int;
using Handle = void*;

inline constexpr Status kSuccess = 0;
inline constexpr Status kNotSupported = 3;
inline constexpr Status kNoPermission = 4;
inline constexpr Status kNotFound = 6;
inline constexpr Status kDriverNotLoaded = 9;
inline constexpr Status kTimeout = 10;
inline constexpr Status kFunctionNotFound = 13;
inline constexpr Status kGpuIsLost = 15;
inline constexpr Status kResetRequired = 16;
inline constexpr Status kLibraryMismatch = 18;
inline constexpr Status kDeprecated = 26;
inline constexpr Status kGpuNotFound = 28;

struct MemoryInfo {
  unsigned long long total, free, used;
};
struct UtilisationRates {
  unsigned gpu, memory;  // percent
};
struct PciInfo {
  char bus_id_legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
struct Temperature {
  unsigned version;
  int sensor;
  int celsius;
};
inline constexpr unsigned kTemperatureVersion1 = sizeof(Temperature) | 1U << 24;
inline constexpr int kGpuSensor = 0;

union Value {
  double as_double;
  int as_int;
  unsigned as_unsigned;
  unsigned long as_unsigned_long;
  unsigned long long as_unsigned_long_long;
  long long as_long_long;
  unsigned short as_unsigned_short;
};
enum ValueType { kDouble, kUnsigned, kUnsignedLong, kUnsignedLongLong, kLongLong, kInt, kUnsignedShort };
struct FieldValue {
  unsigned field, scope;
  long long timestamp, latency_microseconds;
  int type;
  Status status;
  Value value;
};
static_assert(sizeof(FieldValue) == 40 && sizeof(PciInfo) == 68 && sizeof(Temperature) == 12);

inline constexpr unsigned kAveragePowerField = 185;
inline constexpr unsigned kInstantPowerField = 186;

inline constexpr unsigned kTextBytes = 96;  // what NVML's names, versions and UUIDs need at most

// A function of the library, null where this version lacks it.
template <class... Arguments>
struct Function {
  const char* name;
  Status (*call)(Arguments...) = nullptr;

  explicit Function(const char* function) : name(function) {}
  void find(void* library) { call = reinterpret_cast<Status (*)(Arguments...)>(dlsym(library, name)); }
};

inline ErrorKind kind_of(Status status) {
  switch (status) {
    case kNotSupported:
    case kFunctionNotFound:
    case kDeprecated:
      return ErrorKind::kUnsupported;
    case kNoPermission:
      return ErrorKind::kPermission;
    case kNotFound:
    case kGpuNotFound:
      return ErrorKind::kNotFound;
    case kDriverNotLoaded:
    case kGpuIsLost:
    case kResetRequired:
    case kLibraryMismatch:
      return ErrorKind::kUnavailable;
    case kTimeout:
      return ErrorKind::kTimeout;
    default:
      return ErrorKind::kOther;
  }
}

inline std::optional<double> number_of(const FieldValue& field) {
  switch (field.type) {
    case kDouble:
      return field.value.as_double;
    case kUnsigned:
      return field.value.as_unsigned;
    case kUnsignedLong:
      return static_cast<double>(field.value.as_unsigned_long);
    case kUnsignedLongLong:
      return static_cast<double>(field.value.as_unsigned_long_long);
    case kLongLong:
      return static_cast<double>(field.value.as_long_long);
    case kInt:
      return field.value.as_int;
    case kUnsignedShort:
      return field.value.as_unsigned_short;
    default:
      return std::nullopt;
  }
}

}  // namespace nvml_api

class NvmlLibrary {
  using Status = nvml_api::Status;
  using Handle = nvml_api::Handle;
  template <class... Arguments>
  using Function = nvml_api::Function<Arguments...>;

 public:
  explicit NvmlLibrary(const std::string& file) : library_(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    const auto find = [this](auto&... functions) { (functions.find(library_), ...); };
    find(init, shutdown, driver_version, cuda_version, device_count, device_by_index, device_by_pci, name,
         uuid, pci_info, compute_capability, memory_info, total_energy, power_usage, power_limit,
         field_values, clock_info, clock_events, throttle_reasons, temperature, temperature_v, utilisation,
         mig_mode, supported_memory_clocks, supported_graphics_clocks, set_gpu_locked_clocks,
         reset_gpu_locked_clocks);
    error_string_ = reinterpret_cast<const char* (*)(Status)>(dlsym(library_, "nvmlErrorString"));
  }
  ~NvmlLibrary() {
    if (started_ && shutdown.call != nullptr) shutdown.call();
    if (library_ != nullptr) dlclose(library_);
  }
  NvmlLibrary(const NvmlLibrary&) = delete;
  NvmlLibrary& operator=(const NvmlLibrary&) = delete;

  bool loaded() const { return library_ != nullptr; }

  Status start() {
    const Status status = init.call == nullptr ? nvml_api::kFunctionNotFound : init.call();
    started_ = status == nvml_api::kSuccess;
    return status;
  }

  // The one way to call NVML: a failure names the function and what it answered.
  template <class... Parameters, class... Arguments>
  Result<void> call(const Function<Parameters...>& function, Arguments... arguments) const {
    if (function.call == nullptr)
      return make_error(ErrorKind::kUnsupported, function.name, ": this driver's NVML does not have it");
    const Status status = function.call(arguments...);
    if (status == nvml_api::kSuccess) return {};
    return failure(function.name, status);
  }

  Error failure(const char* function, Status status) const {
    const char* text = error_string_ == nullptr ? nullptr : error_string_(status);
    return make_error(nvml_api::kind_of(status), function, ": ", text == nullptr ? "failed" : text,
                      " (status ", status, ")");
  }

  template <class... Parameters, class... Arguments>
  Result<std::string> text(const Function<Parameters...>& function, Arguments... arguments) const {
    char buffer[nvml_api::kTextBytes] = {};
    if (const auto called = call(function, arguments..., buffer, nvml_api::kTextBytes); !called)
      return called.error();
    return std::string(buffer);
  }

  Function<> init{"nvmlInit_v2"};
  Function<> shutdown{"nvmlShutdown"};
  Function<char*, unsigned> driver_version{"nvmlSystemGetDriverVersion"};
  Function<int*> cuda_version{"nvmlSystemGetCudaDriverVersion_v2"};
  Function<unsigned*> device_count{"nvmlDeviceGetCount_v2"};
  Function<unsigned, Handle*> device_by_index{"nvmlDeviceGetHandleByIndex_v2"};
  Function<const char*, Handle*> device_by_pci{"nvmlDeviceGetHandleByPciBusId_v2"};
  Function<Handle, char*, unsigned> name{"nvmlDeviceGetName"};
  Function<Handle, char*, unsigned> uuid{"nvmlDeviceGetUUID"};
  Function<Handle, nvml_api::PciInfo*> pci_info{"nvmlDeviceGetPciInfo_v3"};
  Function<Handle, int*, int*> compute_capability{"nvmlDeviceGetCudaComputeCapability"};
  Function<Handle, nvml_api::MemoryInfo*> memory_info{"nvmlDeviceGetMemoryInfo"};
  Function<Handle, unsigned long long*> total_energy{"nvmlDeviceGetTotalEnergyConsumption"};
  Function<Handle, unsigned*> power_usage{"nvmlDeviceGetPowerUsage"};
  Function<Handle, unsigned*> power_limit{"nvmlDeviceGetEnforcedPowerLimit"};
  Function<Handle, int, nvml_api::FieldValue*> field_values{"nvmlDeviceGetFieldValues"};
  Function<Handle, int, unsigned*> clock_info{"nvmlDeviceGetClockInfo"};
  Function<Handle, unsigned long long*> clock_events{"nvmlDeviceGetCurrentClocksEventReasons"};
  Function<Handle, unsigned long long*> throttle_reasons{"nvmlDeviceGetCurrentClocksThrottleReasons"};
  Function<Handle, int, unsigned*> temperature{"nvmlDeviceGetTemperature"};
  Function<Handle, nvml_api::Temperature*> temperature_v{"nvmlDeviceGetTemperatureV"};
  Function<Handle, nvml_api::UtilisationRates*> utilisation{"nvmlDeviceGetUtilizationRates"};
  Function<Handle, unsigned*, unsigned*> mig_mode{"nvmlDeviceGetMigMode"};
  Function<Handle, unsigned*, unsigned*> supported_memory_clocks{"nvmlDeviceGetSupportedMemoryClocks"};
  Function<Handle, unsigned, unsigned*, unsigned*> supported_graphics_clocks{
      "nvmlDeviceGetSupportedGraphicsClocks"};
  // What changes the GPU; called by ClockControl alone (energy/clock_control.h).
  Function<Handle, unsigned, unsigned> set_gpu_locked_clocks{"nvmlDeviceSetGpuLockedClocks"};
  Function<Handle> reset_gpu_locked_clocks{"nvmlDeviceResetGpuLockedClocks"};

 private:
  void* library_;
  const char* (*error_string_)(Status) = nullptr;
  bool started_ = false;
};

}  // namespace moebius::energy
