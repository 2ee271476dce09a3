// What a GPU model's clocks (or power limits) cost: recorded tables of time and energy, read from CSV. Four
// forms, told apart by their columns:
//
//   profile   gpu, phase, clock_mhz, time_s, energy_j [, switch_s, slack_s, wait_w, stage]
//             `moebius energy profile` writes it: one step, phase by phase. slack_s: how much longer the
//             phase may take before anything else waits for it (exposed communication, data), at wait_w
//             meanwhile. With `stage` the phases forward and backward are a pipeline's instructions.
//   plans     model, cp, tp, mbs, seq, method, plan_index, iteration_time_s, energy_j, …   (kareus_plans.csv)
//             whole plans of a pipeline, each with a clock per instruction; how often a stage changes its
//             clock comes from a file of operations beside it (kareus_ops.csv.gz).
//   sweep     gpu, dataset, network, batch_size, optimizer, power_limit_w, time_per_epoch_s, …
//   windows   gpu, network, gpu_index, gpus_in_run, power_limit_w, elapsed_s, energy_j
//             one phase, a power limit as the knob.
//
// Every number is as recorded; nothing is smoothed or filled in.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moebius::energy::clocks {

// One setting of the knob and what the phase took under it.
struct Setting {
  double knob = 0;  // MHz or W
  double seconds = 0, joules = 0;
};

struct PhaseCurve {
  std::string phase;
  int stage = 0;
  std::vector<Setting> settings;  // by rising knob; the last is the default
  double slack_seconds = 0, wait_watts = 0;
};

// A way to run one step that was recorded as a whole.
struct RecordedPlan {
  std::string name;
  double seconds = 0, joules = 0;
  int64_t switches = 0;  // changes of clock per step, of the stage that changes most
};

struct ClockTable {
  std::string id, gpu;
  std::string knob;                 // "MHz", "W", or "plan"
  std::vector<PhaseCurve> phases;   // empty where plans were recorded
  std::vector<RecordedPlan> plans;  // by rising time
  double switch_seconds = -1;       // measured; -1: not in the table
  bool pipelined = false;           // `stage` was given
};

// UserError naming file, line, column and value.
std::vector<ClockTable> read_clock_tables(const std::filesystem::path& file);

}  // namespace moebius::energy::clocks
