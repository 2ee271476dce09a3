// What `moebius doctor` found, as a value: written as text for people and as JSON for scripts. The JSON's
// keys are stable; `format` rises when a key changes its meaning or goes away (new keys may appear at any
// time).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/machine_probe.h"
#include "cli/nvml_probe.h"
#include "energy/rapl.h"

namespace moebius::cli {

struct LibraryVersion {
  std::string name, version, used_for;
};

// The CUDA plug-in as ops/device.h reports it.
struct PluginProbe {
  bool loaded = false;
  std::string path, why;
  int num_devices = 0;
};

// Something that is not there, what that costs, and how to get it.
struct Advice {
  std::string missing, consequence, remedy;
};

struct DoctorReport {
  std::string moebius_version;
  SystemProbe system;
  CpuProbe cpu;
  std::optional<double> cpu_limit_cores;  // of the control group
  int64_t memory_total_bytes = 0, memory_available_bytes = 0;
  std::optional<int64_t> memory_limit_bytes;  // of the control group
  std::string disk_path;
  int64_t disk_free_bytes = 0;
  NvmlProbe nvml;
  PluginProbe plugin;
  energy::RaplSurvey rapl;
  std::vector<LibraryVersion> libraries;
};

// Everything but `plugin` and libtorch's own versions, which need libtorch.
DoctorReport probe_machine(const std::string& disk_path);

// The libraries of the distribution that this program was compiled against.
std::vector<LibraryVersion> compiled_library_versions();

std::vector<Advice> advise(const DoctorReport& report);
nlohmann::ordered_json to_json(const DoctorReport& report);
std::string to_text(const DoctorReport& report);

}  // namespace moebius::cli
