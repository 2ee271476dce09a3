// Plans for jobs that lose time when they pause, resume or change size.
#pragma once

#include <vector>

#include "queue/policy.h"
#include "queue/slots.h"

namespace moebius::queue {

// Least sum of value x power over the slots such that the work is done before their end, every resume and
// change of size after the first start charged with `switch_s` at full power. By Lagrangian relaxation: for a
// price of work, the best number of workers of each slot follows from one pass over (slot, workers before);
// the price is raised until the work is done, and what the step of the price leaves over is taken back where
// it saves most. Not exact: the gap is that of the relaxation, at most one slot's change of workers. When the
// work does not fit, the fastest plan; it ends behind the slots.
std::vector<Piece> switching_plan(const Situation& situation, const std::vector<Slot>& slots);

}  // namespace moebius::queue
