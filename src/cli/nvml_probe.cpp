#include "cli/nvml_probe.h"

#include <dlfcn.h>

#include "base/concat.h"

namespace moebius::cli {

namespace {

// The few declarations of NVML's stable C interface that are used (NVML API reference, "Device Queries").
using Status = int;  // 0 = success
using Device = void*;
struct Memory {
  unsigned long long total, free, used;
};

constexpr Status kDriverNotLoaded = 9;
constexpr Status kLibraryMismatch = 18;

class Library {
 public:
  explicit Library(const char* name) : handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {}
  ~Library() {
    if (started_) call<Status()>("nvmlShutdown");
    if (handle_ != nullptr) dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool loaded() const { return handle_ != nullptr; }

  Status start() {
    const Status status = call<Status()>("nvmlInit_v2");
    started_ = status == 0;
    return status;
  }

  // The status of the function, or -1 when this driver's library does not have it.
  template <class Signature, class... Arguments>
  Status call(const char* function, Arguments... arguments) const {
    auto* address = reinterpret_cast<Signature*>(dlsym(handle_, function));
    return address == nullptr ? -1 : address(arguments...);
  }

 private:
  void* handle_;
  bool started_ = false;
};

GpuProbe probe_gpu(const Library& nvml, Device device) {
  GpuProbe gpu;
  char name[96] = {};
  if (nvml.call<Status(Device, char*, unsigned)>("nvmlDeviceGetName", device, name, unsigned{sizeof name}) ==
      0) {
    gpu.name = name;
  }
  nvml.call<Status(Device, int*, int*)>("nvmlDeviceGetCudaComputeCapability", device, &gpu.compute_major,
                                        &gpu.compute_minor);
  Memory memory{};
  if (nvml.call<Status(Device, Memory*)>("nvmlDeviceGetMemoryInfo", device, &memory) == 0) {
    gpu.total_memory_bytes = static_cast<int64_t>(memory.total);
    gpu.free_memory_bytes = static_cast<int64_t>(memory.free);
  }
  unsigned milliwatts = 0;
  if (nvml.call<Status(Device, unsigned*)>("nvmlDeviceGetEnforcedPowerLimit", device, &milliwatts) == 0) {
    gpu.power_limit_watts = milliwatts / 1e3;
  }
  unsigned long long millijoules = 0;
  if (nvml.call<Status(Device, unsigned long long*)>("nvmlDeviceGetTotalEnergyConsumption", device,
                                                     &millijoules) == 0) {
    gpu.total_energy_joules = static_cast<double>(millijoules) / 1e3;
  }
  return gpu;
}

std::string why_not_started(Status status) {
  switch (status) {
    case kDriverNotLoaded:
      return "the NVIDIA driver is installed but not loaded; try: sudo modprobe nvidia";
    case kLibraryMismatch:
      return "the NVIDIA kernel module and its libraries are of different versions; reboot after the "
             "driver's update";
    default:
      return concat("NVML did not start (status ", status, "); `nvidia-smi` may say more");
  }
}

}  // namespace

NvmlProbe probe_nvml(const char* library) {
  NvmlProbe probe;
  Library nvml(library);
  if (!nvml.loaded()) {
    probe.why =
        "no NVIDIA driver is installed (libnvidia-ml.so.1 is missing); with an NVIDIA GPU install the "
        "driver, version "
        "580 or newer; in a container start it with the NVIDIA container toolkit (--gpus all)";
    return probe;
  }
  if (const Status status = nvml.start(); status != 0) {
    probe.why = why_not_started(status);
    return probe;
  }
  char version[96] = {};
  if (nvml.call<Status(char*, unsigned)>("nvmlSystemGetDriverVersion", version, unsigned{sizeof version}) ==
      0) {
    probe.driver_version = version;
  }
  nvml.call<Status(int*)>("nvmlSystemGetCudaDriverVersion_v2", &probe.cuda_version);
  unsigned count = 0;
  nvml.call<Status(unsigned*)>("nvmlDeviceGetCount_v2", &count);
  for (unsigned index = 0; index < count; ++index) {
    Device device = nullptr;
    if (nvml.call<Status(unsigned, Device*)>("nvmlDeviceGetHandleByIndex_v2", index, &device) != 0) continue;
    probe.gpus.push_back(probe_gpu(nvml, device));
  }
  if (probe.gpus.empty()) {
    probe.why =
        "the NVIDIA driver is loaded but shows no GPU to this process; check CUDA_VISIBLE_DEVICES, the "
        "container's devices and `nvidia-smi`";
  }
  return probe;
}

}  // namespace moebius::cli
