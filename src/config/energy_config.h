// How a run counts its energy and carbon, and whether it may ask for other clocks.
#pragma once

#include <cstdint>
#include <string>

#include "config/field.h"

namespace moebius::config {

struct EnergyConfig {
  double grid_intensity = 0;
  std::string grid_trace;
  std::string grid_scope = "lifecycle";
  std::string grid_kind = "average";
  std::string grid_source;
  std::string grid_from;
  double cpu_watts_per_core = 0;
  bool sensors = true;
  double sample_ms = 20;
  std::string governor = "off";
  std::string governor_profile;
  double governor_epsilon = 0.03;
  int64_t governor_mhz = 0;
  std::string governor_socket = "/run/moebius-powerd.sock";
};

template <class V>
void describe(V& v, EnergyConfig& c) {
  v.field("grid_intensity", c.grid_intensity, range(0, 5000), "g/kWh",
          "Carbon intensity of the electricity, constant; 0: unknown, no grams are shown.");
  v.field("grid_trace", c.grid_trace, any(), "",
          "CSV of recorded intensities instead (docs/carbon.md); its times are UTC.");
  v.field("grid_scope", c.grid_scope, one_of({"lifecycle", "direct"}), "",
          "Emissions of a plant's whole life, or of its chimney alone; picks the trace's column.");
  v.field("grid_kind", c.grid_kind, one_of({"average", "marginal"}), "",
          "What the constant is; traces name theirs.");
  v.field("grid_source", c.grid_source, any(), "", "Whose figure it is; shown with every number of grams.");
  v.field("grid_from", c.grid_from, any(), "",
          "Replay the trace from this time (2022-06-01T00:00:00Z); empty: from now.");
  v.field("cpu_watts_per_core", c.cpu_watts_per_core, range(0, 100), "W",
          "For an estimate of the host's energy where no counter is readable; 0: none.");
  v.field(
      "sensors", c.sensors, any(), "",
      "Read the machine's sensors and note phases; false: neither, and nothing of energy is in the results.");
  v.field("sample_ms", c.sample_ms, range(1, 1000), "ms",
          "Aim of the interval between readings of the sensors; they take at most 0.4 % of it.");
  v.field("governor", c.governor, one_of({"off", "fixed", "per-phase", "slack", "own"}), "",
          "Which clocks moebius-powerd is asked for (docs/energy.md); off: none, the GPU is only read.");
  v.field("governor_profile", c.governor_profile, any(), "",
          "Profile of the GPU model by `moebius energy profile`; needed by all modes but off and fixed.");
  v.field("governor_epsilon", c.governor_epsilon, range(0, 1), "",
          "Largest slowdown that the governor may cause, as a share of the time at default clocks.");
  v.field("governor_mhz", c.governor_mhz, range(0, 10000), "MHz", "The clock of mode fixed.");
  v.field("governor_socket", c.governor_socket, any(), "", "Socket of moebius-powerd.");
}

}  // namespace moebius::config
