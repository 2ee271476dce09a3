#include "queue/slots.h"

#include <algorithm>

namespace moebius::queue {

std::vector<Slot> slots_until(const Situation& s, double until_s) {
  std::vector<Slot> slots;
  if (!(s.now_s < until_s)) return slots;
  for (const Piece& free :
       s.calendar.free_stretches(s.now_s, until_s, s.job.width, s.scaling.max_workers())) {
    for (double at = free.begin_s; at < free.end_s;) {
      const double end = std::min(s.outlook.next_border(at), free.end_s);
      slots.push_back({at, end, s.outlook.value_at(at), s.outlook.deviation_at(at), free.workers});
      at = end;
    }
  }
  return slots;
}

}  // namespace moebius::queue
