// A job's window as slots: stretches inside one step of the grid, each with its intensity and with room for
// some workers.
#pragma once

#include <vector>

#include "queue/policy.h"

namespace moebius::queue {

struct Slot {
  double begin_s = 0, end_s = 0;
  double value = 0;  // gCO2eq/kWh
  int max_workers = 0;

  double seconds() const { return end_s - begin_s; }
};

// Slots of [now, until) in order, touching each other, those without room included (max_workers 0).
// `keep_free`: share of the capacity that counts as taken.
std::vector<Slot> slots_until(const Situation& situation, double until_s, double keep_free = 0);

// The greedy of CarbonScaler (Hanafy et al., SIGMETRICS 2024): repeatedly takes the (slot, next worker) with
// the largest marginal throughput / (marginal power x value) until the work is done; the last one counts for
// the fraction needed. Optimal for the slots' values when switching is free and the marginal throughput falls
// with workers; with one worker it takes the cheapest slots. Work that does not fit runs behind the deadline,
// as early as there is room.
std::vector<Piece> greedy_plan(const Situation& situation, const std::vector<Slot>& slots);

}  // namespace moebius::queue
