#include "energy/nvml.h"

#include <dlfcn.h>

#include <bit>
#include <optional>

namespace moebius::energy {

namespace {

// The few declarations of NVML's stable C interface that are used, after the NVML API reference.
using Status = int;
using Handle = void*;

constexpr Status kSuccess = 0;
constexpr Status kNotSupported = 3;
constexpr Status kNoPermission = 4;
constexpr Status kNotFound = 6;
constexpr Status kDriverNotLoaded = 9;
constexpr Status kTimeout = 10;
constexpr Status kFunctionNotFound = 13;
constexpr Status kGpuIsLost = 15;
constexpr Status kResetRequired = 16;
constexpr Status kLibraryMismatch = 18;
constexpr Status kDeprecated = 26;
constexpr Status kGpuNotFound = 28;

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
constexpr unsigned kTemperatureVersion1 = sizeof(Temperature) | 1U << 24;
constexpr int kGpuSensor = 0;

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

constexpr unsigned kAveragePowerField = 185;
constexpr unsigned kInstantPowerField = 186;

constexpr unsigned kTextBytes = 96;  // what NVML's names, versions and UUIDs need at most

// A function of the library, null where this version lacks it.
template <class... Arguments>
struct Function {
  const char* name;
  Status (*call)(Arguments...) = nullptr;

  explicit Function(const char* function) : name(function) {}
  void find(void* library) { call = reinterpret_cast<Status (*)(Arguments...)>(dlsym(library, name)); }
};

ErrorKind kind_of(Status status) {
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

std::optional<double> number_of(const FieldValue& field) {
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

}  // namespace

class NvmlLibrary {
 public:
  explicit NvmlLibrary(const std::string& file) : library_(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    const auto find = [this](auto&... functions) { (functions.find(library_), ...); };
    find(init, shutdown, driver_version, cuda_version, device_count, device_by_index, device_by_pci, name,
         uuid, pci_info, compute_capability, memory_info, total_energy, power_usage, power_limit,
         field_values, clock_info, clock_events, throttle_reasons, temperature, temperature_v, utilisation,
         mig_mode);
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
    const Status status = init.call == nullptr ? kFunctionNotFound : init.call();
    started_ = status == kSuccess;
    return status;
  }

  // The one way to call NVML: a failure names the function and what it answered.
  template <class... Parameters, class... Arguments>
  Result<void> call(const Function<Parameters...>& function, Arguments... arguments) const {
    if (function.call == nullptr)
      return make_error(ErrorKind::kUnsupported, function.name, ": this driver's NVML does not have it");
    const Status status = function.call(arguments...);
    if (status == kSuccess) return {};
    return failure(function.name, status);
  }

  Error failure(const char* function, Status status) const {
    const char* text = error_string_ == nullptr ? nullptr : error_string_(status);
    return make_error(kind_of(status), function, ": ", text == nullptr ? "failed" : text, " (status ", status,
                      ")");
  }

  template <class... Parameters, class... Arguments>
  Result<std::string> text(const Function<Parameters...>& function, Arguments... arguments) const {
    char buffer[kTextBytes] = {};
    if (const auto called = call(function, arguments..., buffer, kTextBytes); !called) return called.error();
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
  Function<Handle, PciInfo*> pci_info{"nvmlDeviceGetPciInfo_v3"};
  Function<Handle, int*, int*> compute_capability{"nvmlDeviceGetCudaComputeCapability"};
  Function<Handle, MemoryInfo*> memory_info{"nvmlDeviceGetMemoryInfo"};
  Function<Handle, unsigned long long*> total_energy{"nvmlDeviceGetTotalEnergyConsumption"};
  Function<Handle, unsigned*> power_usage{"nvmlDeviceGetPowerUsage"};
  Function<Handle, unsigned*> power_limit{"nvmlDeviceGetEnforcedPowerLimit"};
  Function<Handle, int, FieldValue*> field_values{"nvmlDeviceGetFieldValues"};
  Function<Handle, int, unsigned*> clock_info{"nvmlDeviceGetClockInfo"};
  Function<Handle, unsigned long long*> clock_events{"nvmlDeviceGetCurrentClocksEventReasons"};
  Function<Handle, unsigned long long*> throttle_reasons{"nvmlDeviceGetCurrentClocksThrottleReasons"};
  Function<Handle, int, unsigned*> temperature{"nvmlDeviceGetTemperature"};
  Function<Handle, Temperature*> temperature_v{"nvmlDeviceGetTemperatureV"};
  Function<Handle, UtilisationRates*> utilisation{"nvmlDeviceGetUtilizationRates"};
  Function<Handle, unsigned*, unsigned*> mig_mode{"nvmlDeviceGetMigMode"};

 private:
  void* library_;
  const char* (*error_string_)(Status) = nullptr;
  bool started_ = false;
};

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
