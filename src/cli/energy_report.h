// The energy of a run, out of its energy.jsonl (docs/formats/metrics.md): every process that worked on the
// run wrote lines of its own totals there, and the last line of each counts; work of a crashed process counts
// too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "energy/phase.h"

namespace moebius::cli {

struct EnergyPart {
  energy::PerPhase joules{}, seconds{};
  double total_joules = 0;
  std::optional<double> counter_joules, grams;  // absent when one of the processes lacks it
  bool estimated = false;
  std::vector<std::string> methods;  // distinct
};

struct EnergyReport {
  std::optional<EnergyPart> gpu, host;
  double seconds = 0;
  int64_t sessions = 0, steps = 0, tokens = 0;  // of all processes, repeated steps counted again
  std::vector<std::string> grids;               // distinct

  // Mean power of the stretch between two lines, for the plot.
  struct Stretch {
    double begin_seconds = 0, end_seconds = 0;  // sessions one behind the other
    energy::PerPhase watts{};
  };
  std::vector<Stretch> stretches;  // of the GPU, else of the host

  const EnergyPart& main_part() const { return gpu ? *gpu : *host; }
};

// UserError when the folder is no run, or no energy was recorded in it (with what its summary says of why).
EnergyReport read_energy_report(const std::filesystem::path& run_dir);

// SVG: power by phase over time, and each phase's share.
std::string plot_energy(const std::string& title, const EnergyReport& report);

}  // namespace moebius::cli
