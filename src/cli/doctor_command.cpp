#include "cli/doctor_command.h"

#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "cli/doctor_report.h"
#include "ops/device.h"

namespace moebius::cli {

namespace {

// "3.10.2" out of "Intel(R) MKL-DNN v3.10.2 (Git Hash …)".
std::string onednn_version() {
  const std::string text = at::get_mkldnn_version();
  const auto begin = text.find(" v");
  if (begin == std::string::npos) return "not built into this libtorch";
  return text.substr(begin + 2, text.find_first_of(" \n", begin + 2) - begin - 2);
}

PluginProbe probe_plugin() {
  const ops::PluginStatus& status = ops::load_cuda_plugin();
  PluginProbe probe;
  probe.loaded = status.plugin != nullptr;
  probe.path = status.path;
  probe.why = status.why;
  if (probe.loaded) probe.num_devices = status.plugin->device_count();
  return probe;
}

void run_doctor(bool as_json) {
  DoctorReport report = probe_machine(std::filesystem::current_path().string());
  report.plugin = probe_plugin();
  report.libraries.insert(
      report.libraries.begin(),
      {{"libtorch", concat(TORCH_VERSION_MAJOR, ".", TORCH_VERSION_MINOR, ".", TORCH_VERSION_PATCH),
        concat("tensors and autograd; uses ", at::get_cpu_capability())},
       {"oneDNN", onednn_version(), "libtorch's matrix products on the CPU"}});
  if (as_json) {
    std::cout << to_json(report).dump(2) << '\n';
  } else {
    std::cout << to_text(report);
  }
  std::cout.flush();
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("doctor", "Show what this machine has, what is missing and how to get it");
  auto as_json = std::make_shared<bool>(false);
  command->add_flag("--json", *as_json, "Print one JSON object instead of text");
  command->callback([as_json] { run_doctor(*as_json); });
}

}  // namespace moebius::cli
