#include "cli/nvml_probe.h"

#include "energy/nvml.h"

namespace moebius::cli {

namespace {

template <class T>
std::optional<T> value_if(const Result<T>& result) {
  return result ? std::optional<T>(*result) : std::nullopt;
}

GpuProbe probe_gpu(const energy::NvmlDevice& device) {
  GpuProbe gpu;
  gpu.name = device.name().value_or("");
  const auto capability = device.compute_capability().value_or({});
  gpu.compute_major = capability.major;
  gpu.compute_minor = capability.minor;
  const auto memory = device.memory().value_or({});
  gpu.total_memory_bytes = memory.total_bytes;
  gpu.free_memory_bytes = memory.free_bytes;
  gpu.power_limit_watts = value_if(device.power_limit_watts());
  gpu.total_energy_joules = value_if(device.total_energy_joules());
  return gpu;
}

}  // namespace

NvmlProbe probe_nvml(const std::string& library) {
  NvmlProbe probe;
  const auto nvml = energy::Nvml::open(library);
  if (!nvml) {
    probe.why = nvml.error().message;
    return probe;
  }
  probe.driver_version = nvml->driver_version().value_or("");
  probe.cuda_version = nvml->cuda_version().value_or(0);
  const int count = nvml->num_devices().value_or(0);
  for (int index = 0; index < count; ++index) {
    if (const auto device = nvml->device(index)) probe.gpus.push_back(probe_gpu(*device));
  }
  if (probe.gpus.empty()) {
    probe.why =
        "the NVIDIA driver is loaded but shows no GPU to this process; check CUDA_VISIBLE_DEVICES, the "
        "container's devices and `nvidia-smi`";
  }
  return probe;
}

}  // namespace moebius::cli
