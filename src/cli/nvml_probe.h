// What `moebius doctor` shows of NVIDIA GPUs, read through NVML (energy/nvml.h). A value that cannot be read
// is absent (empty, zero or nullopt).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "energy/nvml.h"

namespace moebius::cli {

struct GpuProbe {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int64_t total_memory_bytes = 0, free_memory_bytes = 0;
  std::optional<double> power_limit_watts;
  std::optional<double> total_energy_joules;  // since the driver was loaded; absent before Volta
};

struct NvmlProbe {
  std::string driver_version;  // "580.95.05"; empty without a driver
  int cuda_version = 0;        // the newest that the driver serves: 1000 * major + 10 * minor
  std::vector<GpuProbe> gpus;
  std::string why;  // why there is nothing, and the way out; empty when at least one GPU answers
};

// `library`: the file name for dlopen; tests name a stand-in.
NvmlProbe probe_nvml(const std::string& library = energy::kNvmlLibrary);

}  // namespace moebius::cli
