#include "cli/doctor_report.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/units.h"

namespace moebius::cli {

namespace {

constexpr int kFormat = 1;
constexpr int64_t kLowDiskBytes = int64_t{5} << 30;
constexpr int64_t kLowMemoryBytes = int64_t{4} << 30;

std::string cuda_version_text(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}

// One line "  label      text" of the text report.
std::string line(const std::string& label, const std::string& text) {
  char padded[24];
  std::snprintf(padded, sizeof padded, "  %-16s", label.c_str());
  return concat(padded, text, "\n");
}

template <class T>
nlohmann::ordered_json or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

std::string text_or_none(const std::string& text) {
  return text.empty() ? "unknown" : text;
}

std::string cpu_text(const DoctorReport& report) {
  const CpuProbe& cpu = report.cpu;
  std::string text = concat(text_or_none(cpu.model), ", ", cpu.sockets, " socket(s), ", cpu.cores, " cores, ",
                            cpu.threads, " threads");
  if (cpu.usable_threads != cpu.threads) text += concat(" (", cpu.usable_threads, " usable by this process)");
  if (report.cpu_limit_cores) text += concat(", limited to ", *report.cpu_limit_cores, " cores");
  return text;
}

std::string instruction_set_text(const CpuProbe& cpu) {
  std::string present, absent;
  for (const auto& [name, there] : cpu.instruction_sets) {
    std::string& list = there ? present : absent;
    list += (list.empty() ? "" : " ") + name;
  }
  return (present.empty() ? "none" : present) + (absent.empty() ? "" : concat(" (not: ", absent, ")"));
}

std::string gpu_text(const GpuProbe& gpu) {
  return concat(
      gpu.name, ", compute capability ", gpu.compute_major, ".", gpu.compute_minor, ", ",
      format_bytes(gpu.total_memory_bytes), " (", format_bytes(gpu.free_memory_bytes), " free)",
      gpu.power_limit_watts ? concat(", power limit ", *gpu.power_limit_watts, " W") : std::string());
}

std::string plugin_text(const PluginProbe& plugin) {
  if (plugin.loaded) return concat("loaded from ", plugin.path, ", ", plugin.num_devices, " device(s)");
  return concat("not loaded: ", plugin.why);
}

bool nvml_energy_readable(const NvmlProbe& nvml) {
  for (const GpuProbe& gpu : nvml.gpus) {
    if (gpu.total_energy_joules) return true;
  }
  return false;
}

std::string energy_text(const DoctorReport& report) {
  std::string text = "CPU ";
  if (report.rapl.domains.empty()) {
    text += "not readable";
  } else {
    text += "through RAPL:";
    for (const energy::RaplDomain& domain : report.rapl.domains) text += " " + domain.name;
  }
  return text + (nvml_energy_readable(report.nvml) ? "; GPU through NVML" : "; GPU not readable");
}

}  // namespace

DoctorReport probe_machine(const std::string& disk_path) {
  DoctorReport report;
  report.moebius_version = MOEBIUS_VERSION;
  report.system = probe_system();
  report.cpu = probe_cpu();
  report.cpu_limit_cores = probe_cpu_limit();
  if (const auto memory = machine_memory()) {
    report.memory_total_bytes = memory.value().total_bytes;
    report.memory_available_bytes = memory.value().available_bytes;
    report.memory_limit_bytes = memory.value().limit_bytes;
  }
  report.disk_path = disk_path;
  report.disk_free_bytes = free_bytes(disk_path);
  report.nvml = probe_nvml();
  report.rapl = energy::survey_rapl();
  report.libraries = compiled_library_versions();
  return report;
}

std::vector<Advice> advise(const DoctorReport& report) {
  std::vector<Advice> all;
  if (!report.nvml.gpus.empty() && !report.plugin.loaded) {
    all.push_back({"the CUDA plug-in", "the GPU is not used", report.plugin.why});
  } else if (report.nvml.gpus.empty()) {
    all.push_back({"an NVIDIA GPU", "training and generation run on the CPU", report.nvml.why});
  }
  if (report.nvml.cuda_version != 0 && report.nvml.cuda_version < 13000) {
    all.push_back({"a driver that serves CUDA 13",
                   concat("this one serves CUDA ", cuda_version_text(report.nvml.cuda_version),
                          " and libtorch's CUDA half will not start"),
                   "install NVIDIA driver 580 or newer"});
  }
  if (!report.cpu.has("avx2")) {
    all.push_back(
        {"AVX2", "CPU kernels run their portable code, several times slower",
         "use an x86-64 CPU of 2013 or later; in a virtual machine pass the host's CPU model through"});
  } else if (!report.cpu.has("avx512_bf16") && !report.cpu.has("amx_bf16")) {
    all.push_back({"bf16 instructions (AVX512-BF16 or AMX)",
                   "train.precision = \"bf16\" is emulated on this CPU",
                   "use train.precision = \"fp32\" here"});
  }
  if (report.rapl.domains.empty()) {
    all.push_back({"CPU energy counters", "summaries leave out energy_joules of the CPU", report.rapl.why});
  }
  if (report.disk_free_bytes < kLowDiskBytes) {
    all.push_back(
        {concat("disk space at ", report.disk_path),
         concat("only ", format_bytes(report.disk_free_bytes), " are free and checkpoints may not fit"),
         "free some, or name another folder with --run"});
  }
  if (report.memory_available_bytes != 0 && report.memory_available_bytes < kLowMemoryBytes) {
    all.push_back(
        {"memory", concat("only ", format_bytes(report.memory_available_bytes), " are available"),
         "close other programs, or raise the control group's limit; `moebius plan` tells what a run needs"});
  }
  return all;
}

nlohmann::ordered_json to_json(const DoctorReport& report) {
  using Json = nlohmann::ordered_json;
  Json sets = Json::object();
  for (const auto& [name, there] : report.cpu.instruction_sets) sets[name] = there;
  Json gpus = Json::array();
  for (const GpuProbe& gpu : report.nvml.gpus) {
    gpus.push_back({{"name", gpu.name},
                    {"compute_capability", concat(gpu.compute_major, ".", gpu.compute_minor)},
                    {"memory_total_bytes", gpu.total_memory_bytes},
                    {"memory_free_bytes", gpu.free_memory_bytes},
                    {"power_limit_watts", or_null(gpu.power_limit_watts)},
                    {"energy_readable", gpu.total_energy_joules.has_value()}});
  }
  Json rapl_domains = Json::array();
  for (const energy::RaplDomain& domain : report.rapl.domains) rapl_domains.push_back(domain.name);
  Json libraries = Json::array();
  for (const LibraryVersion& library : report.libraries) {
    libraries.push_back(
        {{"name", library.name}, {"version", library.version}, {"used_for", library.used_for}});
  }
  Json advice = Json::array();
  for (const Advice& item : advise(report)) {
    advice.push_back({{"missing", item.missing}, {"consequence", item.consequence}, {"remedy", item.remedy}});
  }
  const NvmlProbe& nvml = report.nvml;
  return {{"format", kFormat},
          {"moebius_version", report.moebius_version},
          {"system", {{"distribution", report.system.distribution}, {"kernel", report.system.kernel}}},
          {"cpu",
           {{"model", report.cpu.model},
            {"sockets", report.cpu.sockets},
            {"cores", report.cpu.cores},
            {"threads", report.cpu.threads},
            {"usable_threads", report.cpu.usable_threads},
            {"limit_cores", or_null(report.cpu_limit_cores)},
            {"instruction_sets", sets}}},
          {"memory",
           {{"total_bytes", report.memory_total_bytes},
            {"available_bytes", report.memory_available_bytes},
            {"limit_bytes", or_null(report.memory_limit_bytes)}}},
          {"disk", {{"path", report.disk_path}, {"free_bytes", report.disk_free_bytes}}},
          {"gpu",
           {{"driver_version", nvml.driver_version.empty() ? Json(nullptr) : Json(nvml.driver_version)},
            {"driver_cuda_version",
             nvml.cuda_version == 0 ? Json(nullptr) : Json(cuda_version_text(nvml.cuda_version))},
            {"why_none", nvml.why.empty() ? Json(nullptr) : Json(nvml.why)},
            {"devices", gpus}}},
          {"cuda_plugin",
           {{"loaded", report.plugin.loaded},
            {"path", report.plugin.path.empty() ? Json(nullptr) : Json(report.plugin.path)},
            {"why_not", report.plugin.loaded ? Json(nullptr) : Json(report.plugin.why)},
            {"num_devices", report.plugin.num_devices}}},
          {"energy",
           {{"rapl_present", report.rapl.present},
            {"rapl_readable_domains", rapl_domains},
            {"nvml_readable", nvml_energy_readable(nvml)}}},
          {"libraries", libraries},
          {"advice", advice}};
}

std::string to_text(const DoctorReport& report) {
  std::string text = concat("moebius ", report.moebius_version, "\n\nMachine\n");
  text += line("system",
               concat(text_or_none(report.system.distribution), ", ", text_or_none(report.system.kernel)));
  text += line("CPU", cpu_text(report));
  text += line("instructions", instruction_set_text(report.cpu));
  text += line("memory", concat(format_bytes(report.memory_total_bytes), ", ",
                                format_bytes(report.memory_available_bytes), " available",
                                report.memory_limit_bytes ? " (limited by the control group)" : ""));
  text += line("disk", concat(format_bytes(report.disk_free_bytes), " free at ", report.disk_path));
  text += line("energy", energy_text(report));

  text += "\nGPU\n";
  if (!report.nvml.driver_version.empty()) {
    text += line("driver", concat(report.nvml.driver_version, ", serves CUDA ",
                                  cuda_version_text(report.nvml.cuda_version)));
  }
  for (size_t i = 0; i < report.nvml.gpus.size(); ++i)
    text += line(concat("GPU ", i), gpu_text(report.nvml.gpus[i]));
  if (report.nvml.gpus.empty()) text += line("GPU", "none (see below)");
  text += line("CUDA plug-in", plugin_text(report.plugin));

  text += "\nLibraries\n";
  for (const LibraryVersion& library : report.libraries) {
    text += line(library.name, concat(library.version, "  (", library.used_for, ")"));
  }

  const std::vector<Advice> advice = advise(report);
  text += advice.empty() ? "\nNothing is missing.\n" : "\nMissing\n";
  for (const Advice& item : advice) {
    text += concat("  - ", item.missing, ": ", item.consequence, ".\n    ", item.remedy, "\n");
  }
  return text;
}

}  // namespace moebius::cli
