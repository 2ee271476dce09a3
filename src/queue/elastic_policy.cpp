// CarbonScaler's greedy (Hanafy et al., SIGMETRICS 2024): repeatedly take the (step, next worker) with the
// largest marginal throughput / (marginal power x intensity) until the work is done; the last one counts for
// the fraction needed. Optimal without switching costs when the marginal throughput falls with workers. It
// knows of no switching cost: work that switching loses is planned again, greedily, when the plan ends.
#include <algorithm>
#include <limits>
#include <queue>

#include "queue/policy.h"
#include "queue/slots.h"

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

class Elastic final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    const auto deadline = static_cast<double>(s.job.deadline_s());
    const std::vector<Slot> slots = slots_until(s, deadline);
    std::priority_queue<Candidate, std::vector<Candidate>, Worse> candidates;
    const auto offer = [&](size_t slot, int workers) {
      if (workers > slots[slot].max_workers) return;
      const double speed = s.scaling.speed(workers) - s.scaling.speed(workers - 1);
      const double power = s.scaling.power(workers) - s.scaling.power(workers - 1);
      if (speed <= 0) return;
      candidates.push({power > 0 ? speed / (power * slots[slot].value) : 0, slot, workers});
    };
    for (size_t i = 0; i < slots.size(); ++i) offer(i, 1);
    std::vector<int> workers(slots.size(), 0);
    double left = s.work_left_s, share = 1;
    size_t last = 0;
    while (left > 0 && !candidates.empty()) {
      const Candidate best = candidates.top();
      candidates.pop();
      const double work =
          (s.scaling.speed(best.workers) - s.scaling.speed(best.workers - 1)) * slots[best.slot].seconds();
      workers[best.slot] = best.workers;
      last = best.slot;
      share = std::min(1.0, left / work);
      left -= work;
      offer(best.slot, best.workers + 1);
    }
    std::vector<Piece> pieces;
    for (size_t i = 0; i < slots.size(); ++i) {
      const double end = i == last ? slots[i].begin_s + share * slots[i].seconds() : slots[i].end_s;
      if (workers[i] > 0) append(pieces, {slots[i].begin_s, end, workers[i]});
      if (workers[i] > 1) append(pieces, {end, slots[i].end_s, workers[i] - 1});
    }
    // What does not fit before the deadline runs behind it.
    if (left > 1e-6) {
      for (const Piece& each : run_on(s.calendar, s.job, std::max(deadline, s.now_s), left))
        append(pieces, each);
    }
    return pieces;
  }
};

}  // namespace

std::unique_ptr<Policy> make_elastic_policy() {
  return std::make_unique<Elastic>();
}

}  // namespace moebius::queue
