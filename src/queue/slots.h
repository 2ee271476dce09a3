// A job's window as slots: stretches inside one step of the grid, each with its intensity and with room for
// some workers.
#pragma once

#include <vector>

#include "queue/policy.h"

namespace moebius::queue {

struct Slot {
  double begin_s = 0, end_s = 0;
  double value = 0;      // gCO2eq/kWh
  double deviation = 0;  // of the error of `value`
  int max_workers = 0;

  double seconds() const { return end_s - begin_s; }
};

// Slots of [now, until) in order, those without room included (max_workers 0).
std::vector<Slot> slots_until(const Situation& situation, double until_s);

}  // namespace moebius::queue
