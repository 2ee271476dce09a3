// `moebius energy profile CONFIG`: time and energy of each phase of a training step, clock by clock. Reads
// only, at the clock that the GPU has, unless told to set clocks; those are asked of moebius-powerd.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "cli/config_files.h"
#include "cli/energy_command.h"
#include "energy/clock_control.h"
#include "energy/phase.h"
#include "energy/powerd/power_client.h"
#include "ops/device.h"
#include "train/trainer.h"

namespace moebius::cli {
namespace {

namespace fs = std::filesystem;

struct ProfileArguments {
  std::string config, out, socket = "/run/moebius-powerd.sock";
  std::vector<std::string> overrides;
  std::vector<int> clocks;
  int64_t steps = 60, warm_up = 20;
  bool set_clocks = false;
};

constexpr double kSettleSeconds =
    2;  // after a change, as profilers of clocks do (power and heat follow slowly)
constexpr double kSwitchLimitSeconds = 2, kProfileLeaseSeconds = 600;

struct ProfileRow {
  std::string phase;
  int mhz = 0;
  double seconds = 0, joules = 0;  // of one step
};

// The GPU of the run, for reading.
struct ProfiledGpu {
  std::string name, uuid;
  energy::NvmlDevice device;
};

ProfiledGpu gpu_of(at::Device device) {
  if (!device.is_cuda()) throw_user_error("energy profile needs a GPU: the clocks of a CPU are not governed");
  kernels::DeviceInfo info{};
  if (!ops::cuda_plugin()->device_info(device.index(), &info))
    throw_user_error("the GPU does not tell its PCI address; update the driver");
  const auto nvml = energy::Nvml::open();
  if (!nvml) throw UserError(nvml.error().message);
  auto found = nvml->device_at(info.pci_bus_id);
  if (!found) throw UserError(found.error().message);
  const std::string uuid = found->uuid().value_or("");
  return {info.name, uuid, std::move(found).value()};
}

nlohmann::json json_line(const std::string& line) {
  return nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
}

// Phases per step between the first line behind the warm-up and the last one.
std::vector<ProfileRow> rows_of(const fs::path& energy_file, int64_t warm_up, int mhz) {
  if (!fs::exists(energy_file))
    throw_user_error("the run recorded no energy: `moebius doctor` tells what is readable on this machine");
  std::istringstream lines(read_file(energy_file));
  nlohmann::json first, last;
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json json = json_line(line);
    if (!json.is_object() || !json.contains("gpu")) continue;
    if (first.is_null() && json["step"].get<int64_t>() >= warm_up) first = json;
    last = std::move(json);
  }
  const int64_t steps = first.is_null() ? 0 : last["step"].get<int64_t>() - first["step"].get<int64_t>();
  if (steps <= 0)
    throw_user_error(
        "the run ended too soon to be measured: energy is settled about once a second; raise --steps");
  std::vector<ProfileRow> rows;
  for (const char* phase : energy::kPhaseNames) {
    const auto since = [&](const char* what) {
      return (last["gpu"][what].value(phase, 0.0) - first["gpu"][what].value(phase, 0.0)) /
             static_cast<double>(steps);
    };
    const double seconds = since("phases_seconds"), joules = since("phases_joules");
    if (seconds > 0) rows.push_back({phase, mhz, seconds, joules});
  }
  return rows;
}

// Trains for a while and reads off what its ledger says.
std::vector<ProfileRow> measure(const ProfileArguments& arguments, const ProfiledGpu& gpu,
                                at::Device device) {
  train::TrainOptions options;
  options.config = load_config(arguments.config, arguments.overrides);
  options.config.train.steps = arguments.warm_up + arguments.steps;
  options.config.train.eval_every = 0;
  options.config.train.eval_batches = 1;
  options.config.train.sample_tokens = 0;
  options.config.train.log_every = options.config.train.steps;
  options.config.checkpoint.at_end = false;
  options.config.checkpoint.every = 0;
  options.config.energy.governor = "off";
  options.device = device;
  options.run_dir = fs::temp_directory_path() / concat("moebius-profile-", getpid());
  options.mode = train::RunMode::overwrite;
  train::train(options);
  const auto mhz = gpu.device.clock_mhz(energy::ClockDomain::kSm);
  auto rows = rows_of(options.run_dir / "energy.jsonl", arguments.warm_up, mhz.value_or(0));
  remove_tree(options.run_dir);
  return rows;
}

std::string csv_of(const ProfiledGpu& gpu, const std::vector<ProfileRow>& rows,
                   std::optional<double> switch_seconds) {
  std::string text = concat("gpu,phase,clock_mhz,time_s,energy_j", switch_seconds ? ",switch_s" : "", "\n");
  std::string name = gpu.name;
  std::replace(name.begin(), name.end(), ',', ' ');
  for (const ProfileRow& row : rows) {
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, "%d,%.9g,%.9g", row.mhz, row.seconds, row.joules);
    text +=
        concat(name, ",", row.phase, ",", numbers, switch_seconds ? concat(",", *switch_seconds) : "", "\n");
  }
  return text;
}

void profile_at_clocks(const ProfileArguments& arguments, const ProfiledGpu& gpu, at::Device device,
                       std::vector<ProfileRow>& rows, double& switch_seconds) {
  auto client = energy::powerd::PowerClient::connect(arguments.socket);
  if (!client)
    throw UserError(concat(client.error().message, "; --set-clocks needs the daemon (docs/energy.md)"));
  const auto supported = client->clocks_mhz(gpu.uuid);
  if (!supported || supported->empty()) throw UserError("the daemon does not tell the GPU's clocks");
  std::vector<int> clocks = arguments.clocks;
  if (clocks.empty()) {
    // About a dozen over the upper two thirds; lower clocks save no energy in any table that we know.
    const int highest = supported->back(), lowest = highest / 3;
    for (int i = 0; i <= 12; ++i)
      clocks.push_back(energy::nearest_clock(*supported, lowest + (highest - lowest) * i / 12));
  }
  for (const int mhz : clocks) {
    if (interrupt_requested()) break;
    if (const auto locked = client->lock(gpu.uuid, mhz, kProfileLeaseSeconds); !locked)
      throw UserError(locked.error().message);
    const auto took = energy::wait_for_clock(gpu.device, mhz, kSwitchLimitSeconds);
    if (!took) {
      log_warn(took.error().message, "; this clock is left out");
      continue;
    }
    switch_seconds = std::max(switch_seconds, *took);
    usleep(static_cast<useconds_t>(kSettleSeconds * 1e6));
    for (ProfileRow row : measure(arguments, gpu, device)) {
      row.mhz = mhz;
      rows.push_back(std::move(row));
    }
  }
}

void run_profile(const ProfileArguments& arguments) {
  ops::load_cuda_plugin();
  const at::Device device = ops::choose_device("auto");
  const ProfiledGpu gpu = gpu_of(device);
  if (!arguments.set_clocks && !arguments.clocks.empty())
    throw_user_error(
        "--clocks names clocks to set, and profiling only reads unless --set-clocks is given: do that "
        "only on a machine that is yours to tune");
  std::vector<ProfileRow> rows;
  double switch_seconds = 0;
  if (arguments.set_clocks) {
    profile_at_clocks(arguments, gpu, device, rows, switch_seconds);
  } else {
    rows = measure(arguments, gpu, device);
  }
  const std::string text =
      csv_of(gpu, rows, arguments.set_clocks ? std::optional(switch_seconds) : std::nullopt);
  if (arguments.out.empty()) {
    std::cout << text;
  } else {
    write_file_atomic(arguments.out, text);
    std::cout << rows.size() << " rows in " << arguments.out
              << (arguments.set_clocks ? "" : "; read only, at the clock that the GPU had") << "\n";
  }
}

}  // namespace

void add_energy_profile_command(CLI::App& energy) {
  CLI::App* command = energy.add_subcommand(
      "profile", "Measure time and energy of a training step's phases; sets no clock unless told to");
  auto a = std::make_shared<ProfileArguments>();
  command->add_option("config", a->config, "Config of the training that is measured (TOML)")->required();
  command->add_option("--set", a->overrides, "Override a field of it")->allow_extra_args(false);
  command->add_option("--out", a->out, "Write the profile to this CSV (default: print it)");
  command->add_option("--steps", a->steps, "Steps that are measured, per clock")
      ->check(CLI::Range(int64_t{1}, int64_t{1000000}))
      ->capture_default_str();
  command->add_option("--warm-up", a->warm_up, "Steps before that")
      ->check(CLI::Range(int64_t{0}, int64_t{1000000}))
      ->capture_default_str();
  command->add_flag(
      "--set-clocks", a->set_clocks,
      "Lock one clock after the other through moebius-powerd: only on a machine that is yours to tune");
  command->add_option("--clocks", a->clocks, "Clocks in MHz (default: a dozen, from a third of the highest)")
      ->delimiter(',');
  command->add_option("--socket", a->socket, "Socket of moebius-powerd")->capture_default_str();
  command->callback([a] { run_profile(*a); });
}

}  // namespace moebius::cli
