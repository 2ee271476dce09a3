// Energy from a moment on, out of the counters that this machine lets one read: the GPU's through NVML, the
// CPU's through RAPL. A value that no counter gives is absent, never estimated. Thread-safe.
//
// What is counted: the whole card (also what other processes and other MIG instances do on it) and the whole
// packages with their memory (everything that runs on the host). Fans, disks, network and losses of the power
// supply are not in it.
//
// A counter that goes backwards, jumps, stands still or was left unread so long that it may have wrapped
// unseen makes its value absent from then on; one that cannot be read is absent while that lasts. Each is
// warned of once, with the method's name.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "energy/nvml.h"
#include "energy/rapl.h"

namespace moebius::energy {

// Where the counters are; other than the defaults only in tests.
struct EnergySources {
  std::string nvml_library = kNvmlLibrary;
  std::filesystem::path powercap = kPowercap;
  const Clock* clock = &system_clock();  // outlives the counter
  bool read = true;                      // false: no counter is looked for
  // Counters that wrap are read in the background so often that no wrap is missed (every 8 s to 60 s on the
  // CPUs that we know). A number here sets the interval; 0: only the caller reads.
  std::optional<double> background_seconds;
};

class EnergyCounter {
 public:
  // From now on. `pci_bus_id`: the GPU whose energy counts, as CUDA names it ("0000:3b:00.0"); none for a run
  // on the CPU.
  static EnergyCounter open(std::optional<std::string> pci_bus_id, const EnergySources& sources = {});
  ~EnergyCounter();
  EnergyCounter(EnergyCounter&&) noexcept;
  EnergyCounter& operator=(EnergyCounter&&) noexcept;

  struct Reading {
    std::optional<double> device_joules, host_joules;
  };
  // Reads the counters now. NVML's takes up to milliseconds and advances only every few tens of them, so a
  // difference over less than a second means little; for phases: energy/run_ledger.h.
  Reading joules_since_start();
  // One of the two alone: reading NVML's counter took 3 ms on an H200, RAPL's some microseconds.
  std::optional<double> device_joules();
  std::optional<double> host_joules();

  // "device: NVML total energy counter; host: RAPL package-0 + dram"; "none" with its reason in brackets in
  // place of what was not there at the start.
  const std::string& method() const;
  // The halves of that, and whether there was a counter at the start.
  std::string device_method() const;
  std::string host_method() const;
  bool counts_device() const;
  bool counts_host() const;
  // The GPU, when NVML shows it; also where it has no energy counter.
  const std::optional<NvmlDevice>& device() const;

 private:
  struct State;
  explicit EnergyCounter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moebius::energy
