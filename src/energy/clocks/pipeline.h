// Plans of a pipeline: which clock each instruction of a 1F1B schedule gets.
//
// The step is a graph of instructions (stage, forward or backward, micro-batch): each waits for the one
// before it on its stage and for its activations or gradients from the neighbouring stage. Time and energy
// are traded off as in Perseus (Chung et al., SOSP 2024) after Phillips and Dessouky (1977): start with every
// instruction at its thriftiest duration; while the step can get shorter, take the part of the graph that is
// critical, and shorten it across the cheapest cut (shortening costs the curve's slope, and an instruction
// that the cut passes backwards gets longer and gives its slope back). The costs are the curves' lower convex
// hulls after the power of waiting was taken off. Each point of that walk is a plan once durations are
// rounded to the next faster recorded clock.
#pragma once

#include <cstdint>
#include <vector>

#include "energy/clocks/clock_plans.h"

namespace moebius::energy::clocks {

struct Instruction {
  size_t curve = 0;  // of the table: its stage and phase
  int stage = 0;
  int64_t micro_batch = 0;
  bool backward = false;
};

struct Pipeline {
  std::vector<Instruction> instructions;
  std::vector<std::vector<size_t>> before;  // per instruction: what it waits for
  std::vector<std::vector<size_t>> order;   // per stage: its instructions in the order of the schedule
  std::vector<size_t> sequence;             // all of them, each after what it waits for
};

// 1F1B over the stages of the table, which must have curves "forward" and "backward" for stages 0, 1, …;
// UserError otherwise.
Pipeline make_pipeline(const ClockTable& table, int64_t micro_batches);

// Time and energy of the step (sum over the stages' GPUs) at a setting per instruction, with switching
// charged where a stage changes its clock, and waiting at the curves' wait_watts.
Plan evaluate_pipeline(const ClockTable& table, const Pipeline& pipeline, const std::vector<size_t>& settings,
                       double switch_seconds);

// The walk described above, plans of one clock, and for two stages plans of one clock per stage. The base is
// every instruction at its highest clock.
PlanSpace pipeline_space(const ClockTable& table, double switch_seconds, int64_t micro_batches);

}  // namespace moebius::energy::clocks
