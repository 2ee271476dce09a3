// Policies that pause and resume a job of one size.
#include <algorithm>
#include <cmath>
#include <vector>

#include "queue/policy.h"

namespace moebius::queue {
namespace {

// Value at `share` of the way through the sorted 5 s samples of [begin, end), linear between neighbours.
double percentile(const Outlook& outlook, double begin_s, double end_s, double share) {
  struct Weighted {
    double value;
    int64_t samples;
  };
  std::vector<Weighted> steps;
  int64_t count = 0;
  for (double at = begin_s; at < end_s;) {
    const double next = std::min(outlook.next_border(at), end_s);
    const int64_t samples = static_cast<int64_t>(next - at) / kStepSeconds;
    if (samples > 0) steps.push_back({outlook.value_at(at), samples});
    count += samples;
    at = next;
  }
  std::sort(steps.begin(), steps.end(),
            [](const Weighted& a, const Weighted& b) { return a.value < b.value; });
  const double position = share * static_cast<double>(count - 1);
  const auto below = static_cast<int64_t>(position);
  const auto sample = [&](int64_t index) {
    for (const Weighted& each : steps) {
      if (index < each.samples) return each.value;
      index -= each.samples;
    }
    return steps.back().value;
  };
  const double low = sample(below), high = sample(std::min(below + 1, count - 1));
  return low + (high - low) * (position - static_cast<double>(below));
}

class Ecovisor final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    const double threshold = percentile(s.outlook, s.now_s, s.now_s + 86400, 0.3);
    std::vector<Piece> pieces;
    double left = s.work_left_s, budget = static_cast<double>(s.job.budget_s), at = s.now_s;
    while (left > kRounding && budget > kRounding) {
      const double border = s.outlook.next_border(at);
      const bool clean = s.outlook.value_at(at) < threshold;
      for (const Piece& each : s.calendar.free_stretches(at, border, s.job.width, 1)) {
        const double limit = clean && each.workers == 1 ? left : budget;
        const double end = std::min(each.end_s, each.begin_s + limit);
        if (clean && each.workers == 1) {
          append(pieces, {each.begin_s, end, 1});
          left -= end - each.begin_s;
        } else {
          budget -= end - each.begin_s;
        }
        at = end;
        if (left <= kRounding || budget <= kRounding) break;
      }
    }
    for (const Piece& each : run_on(s.calendar, s.job, at, left)) append(pieces, each);
    return pieces;
  }
};

class WaitAwhile final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    const auto deadline = static_cast<double>(s.job.deadline_s());
    struct Slot {
      double begin, end, value;
    };
    std::vector<Slot> slots;
    if (s.now_s < deadline) {
      for (const Piece& free : s.calendar.free_stretches(s.now_s, deadline, s.job.width, 1)) {
        if (free.workers == 0) continue;
        for (double at = free.begin_s; at < free.end_s;) {
          const double end = std::min(s.outlook.next_border(at), free.end_s);
          slots.push_back({at, end, s.outlook.value_at(at)});
          at = end;
        }
      }
    }
    std::stable_sort(slots.begin(), slots.end(),
                     [](const Slot& a, const Slot& b) { return a.value < b.value; });
    double left = s.work_left_s;
    std::vector<Slot> chosen;
    for (const Slot& each : slots) {
      if (left <= kRounding) break;
      chosen.push_back({each.begin, std::min(each.end, each.begin + left), 0});
      left -= each.end - each.begin;
    }
    std::sort(chosen.begin(), chosen.end(), [](const Slot& a, const Slot& b) { return a.begin < b.begin; });
    std::vector<Piece> pieces;
    for (const Slot& each : chosen) append(pieces, {each.begin, each.end, 1});
    for (const Piece& each : run_on(s.calendar, s.job, std::max(deadline, s.now_s), left))
      append(pieces, each);
    return pieces;
  }
};

}  // namespace

std::unique_ptr<Policy> make_ecovisor_policy() {
  return std::make_unique<Ecovisor>();
}
std::unique_ptr<Policy> make_wait_awhile_policy() {
  return std::make_unique<WaitAwhile>();
}

}  // namespace moebius::queue
