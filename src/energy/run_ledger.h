// The ledger of a run: joules and grams of CO2 equivalent per phase, GPU and host apart. Samples the sensors
// on a thread of its own, so the training thread only hands in its spans; how joules come to phases:
// energy/phase_ledger.h. Thread-safe.
//
//   GPU   NVML's energy counter scaled over its momentary power; without the counter, the integral of the
//         power alone, and the method says so.
//   host  RAPL's counters, shared by time inside windows as short as the samples. Where there are none, an
//         estimate may be asked for: processor time of this process times watts per busy core. It is marked
//         as estimated wherever it is shown, and never added to readings.
// Both are shared over the phases of the run's device.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "energy/energy_counter.h"
#include "energy/grid_intensity.h"
#include "energy/phase.h"

namespace moebius::energy {

struct RunLedgerOptions {
  std::optional<std::string> pci_bus_id;  // of the GPU; none: a run on the CPU
  EnergySources sources;
  double cpu_watts_per_core = 0;  // for the estimate; 0: none
  GridIntensity grid;
  double sample_seconds = 0.02;  // aim for power and RAPL; see sample_interval
  double counter_seconds = 1;    // likewise for NVML's counter, which is dearer to read
  bool background = true;        // false: only sample() samples (tests)
};

// Seconds to the next sample after one that took `cost_seconds`: the aim, or so long that samples take at
// most 0.4 % of the time.
double sample_interval(double cost_seconds, double aim_seconds);

class RunLedger {
 public:
  explicit RunLedger(RunLedgerOptions options);
  ~RunLedger();
  RunLedger(const RunLedger&) = delete;
  RunLedger& operator=(const RunLedger&) = delete;

  // In order; on the clock of the sources.
  void add(const PhaseSpan& span);
  // A reading now of all that is due.
  void sample();
  // Attributes what lies before the end of the last span.
  void settle();
  // A last sample, and everything attributed. Samples no more.
  void finish();

  struct Part {
    PerPhase joules{};
    PerPhase seconds{};
    double total_joules = 0;               // sum over phases
    std::optional<double> counter_joules;  // what the counter itself advanced from the ledger's begin to now
    std::optional<double> sampled_joules;  // integral of the power over the same windows, unscaled
    std::optional<double> grams;           // of total_joules; absent without an intensity for all of it
    std::string method;
    bool estimated = false;
  };
  struct Totals {
    std::optional<Part> gpu, host;
    double seconds = 0;  // since the begin
  };
  Totals totals() const;

  // What the counters said at the last sample, settled or not; never an estimate. Costs no reading.
  EnergyCounter::Reading recent_joules() const;
  const std::string& method() const;  // of the counters, or why there is none
  const GridIntensity& grid() const;
  std::optional<double> intensity_now() const;  // g/kWh

  // The last values of the GPU that were sampled; absent where they cannot be read.
  struct GpuState {
    std::optional<double> watts, sm_mhz, memory_mhz;
  };
  GpuState gpu_state() const;
  const std::string& gpu_uuid() const;  // empty without a GPU
  const std::optional<NvmlDevice>& gpu() const;

  struct Cost {
    int64_t num_samples = 0;
    double seconds = 0;  // spent reading, on the ledger's thread
    double share = 0;    // of the time since the begin
  };
  Cost cost() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moebius::energy
