// Our policy: plans the rest of the job up to its deadline, again at the begin of every step with the
// forecast made then.
//
// Planning again pays when the forecast learns from hour to hour. One that knows its error was fitted to do
// so; one that does not (a profile of last week at the level of the last day) moves with every hour without
// coming closer, and planning again with it costs more than it brings: then the plan of the arrival stands.
// Waiting is not free: an hour of delay has to save kImpatience of the mean intensity. That keeps jobs from
// going to the end of their budget for next to nothing, as on flat grids, and makes the earlier of equal
// plans win. Where switching costs time, pauses and changes of size have to earn it (switching_plan.h).
// On a machine of limited capacity jobs that wait for clean hours leave kKeepFree of it to those that come
// later and cannot wait, as long as their own deadlines allow. Deadlines hold: what is left always fits
// before the deadline as long as it did at the arrival.
#include "queue/policy.h"
#include "queue/slots.h"
#include "queue/switching_plan.h"

namespace moebius::queue {
namespace {

constexpr double kImpatience = 0.0003;
constexpr double kKeepFree = 0.15;

void weigh_waiting(const Situation& s, std::vector<Slot>& slots) {
  if (slots.empty()) return;
  double sum = 0;
  for (const Slot& each : slots) sum += each.value;
  const double per_second = kImpatience * sum / static_cast<double>(slots.size()) / 3600;
  for (Slot& each : slots) each.value += per_second * (each.begin_s - s.now_s);
}

class Own final : public Policy {
 public:
  bool replans(const Outlook& outlook) const override { return outlook.knows_its_error(); }
  std::vector<Piece> plan(const Situation& s) const override {
    const auto deadline = static_cast<double>(s.job.deadline_s());
    if (s.calendar.limited()) {
      std::vector<Piece> pieces = plan_in(s, slots_until(s, deadline, kKeepFree));
      if (pieces.back().end_s <= deadline) return pieces;
    }
    return plan_in(s, slots_until(s, deadline));
  }

 private:
  static std::vector<Piece> plan_in(const Situation& s, std::vector<Slot> slots) {
    weigh_waiting(s, slots);
    return s.switch_s > 0 ? switching_plan(s, slots) : greedy_plan(s, slots);
  }
};

}  // namespace

std::unique_ptr<Policy> make_own_policy() {
  return std::make_unique<Own>();
}

}  // namespace moebius::queue
