#include "queue/slots.h"

#include <algorithm>
#include <queue>

namespace moebius::queue {
namespace {

struct Candidate {
  double gain;  // work per carbon
  size_t slot;
  int workers;
};
struct Worse {
  bool operator()(const Candidate& a, const Candidate& b) const {
    if (a.gain != b.gain) return a.gain < b.gain;
    return a.slot > b.slot;  // the earlier of equals first
  }
};

}  // namespace

std::vector<Slot> slots_until(const Situation& s, double until_s, double keep_free) {
  std::vector<Slot> slots;
  if (!(s.now_s < until_s)) return slots;
  for (const Piece& free :
       s.calendar.free_stretches(s.now_s, until_s, s.job.width, s.scaling.max_workers(), keep_free)) {
    for (double at = free.begin_s; at < free.end_s;) {
      const double end = std::min(s.outlook.next_border(at), free.end_s);
      slots.push_back({at, end, s.outlook.value_at(at), free.workers});
      at = end;
    }
  }
  return slots;
}

std::vector<Piece> greedy_plan(const Situation& s, const std::vector<Slot>& slots) {
  std::vector<Candidate> offered;
  offered.reserve(slots.size());
  const auto candidate = [&](size_t slot, int workers) {
    const double speed = s.scaling.speed(workers) - s.scaling.speed(workers - 1);
    const double power = s.scaling.power(workers) - s.scaling.power(workers - 1);
    // A worker that draws nothing more ranks last.
    return Candidate{power > 0 ? speed / (power * slots[slot].value) : 0, slot, workers};
  };
  const auto is_offered = [&](size_t slot, int workers) {
    return workers <= slots[slot].max_workers && s.scaling.speed(workers) > s.scaling.speed(workers - 1);
  };
  for (size_t i = 0; i < slots.size(); ++i) {
    if (is_offered(i, 1)) offered.push_back(candidate(i, 1));
  }
  std::priority_queue<Candidate, std::vector<Candidate>, Worse> candidates(Worse(), std::move(offered));
  std::vector<int> workers(slots.size(), 0);
  double left = s.work_left_s, share = 1;
  size_t last = 0;
  while (left > kRounding && !candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    const double work =
        (s.scaling.speed(best.workers) - s.scaling.speed(best.workers - 1)) * slots[best.slot].seconds();
    workers[best.slot] = best.workers;
    last = best.slot;
    share = std::min(1.0, left / work);
    left -= work;
    if (is_offered(best.slot, best.workers + 1)) candidates.push(candidate(best.slot, best.workers + 1));
  }
  std::vector<Piece> pieces;
  for (size_t i = 0; i < slots.size(); ++i) {
    const double end = i == last ? slots[i].begin_s + share * slots[i].seconds() : slots[i].end_s;
    if (workers[i] > 0) append(pieces, {slots[i].begin_s, end, workers[i]});
    if (workers[i] > 1) append(pieces, {end, slots[i].end_s, workers[i] - 1});
  }
  if (left > kRounding) {
    const double behind = slots.empty() ? s.now_s : slots.back().end_s;
    for (const Piece& each : run_on(s.calendar, s.job, behind, left)) append(pieces, each);
  }
  return pieces;
}

}  // namespace moebius::queue
