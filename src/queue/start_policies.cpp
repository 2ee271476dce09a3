// Policies that choose a start and then run through: the job is never paused.
#include <algorithm>
#include <limits>

#include "queue/policy.h"

namespace moebius::queue {
namespace {

// Runs through from `start`; where there is no room for that, from the earliest time that has.
std::vector<Piece> run_through(const Situation& s, double start_s) {
  const double begin = s.calendar.next_fit(start_s, s.work_left_s, s.job.width);
  return {{begin, begin + s.work_left_s, 1}};
}

bool has_room(const Situation& s, double start_s) {
  return s.calendar.free_workers(start_s, start_s + s.work_left_s, s.job.width, 1) == 1;
}

class Now final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override { return run_through(s, s.now_s); }
};

// Chooses the start with the lowest score, the first of equals; among those with room when some have it.
template <class Score>
std::vector<Piece> best_start(const Situation& s, const std::vector<double>& starts, const Score& score) {
  double best = std::numeric_limits<double>::infinity();
  double chosen = s.now_s;
  for (const double start : starts) {
    if (!has_room(s, start)) continue;
    const double each = score(start);
    if (each < best) {
      best = each;
      chosen = start;
    }
  }
  return run_through(s, chosen);
}

// Now, then every full step of the grid after it.
std::vector<double> starts_after_arrival(const Situation& s) {
  std::vector<double> starts;
  const double last = s.now_s + static_cast<double>(s.job.budget_s);
  for (int64_t k = 0; s.now_s + static_cast<double>(k * s.outlook.step_s()) <= last; ++k) {
    starts.push_back(s.now_s + static_cast<double>(k * s.outlook.step_s()));
  }
  return starts;
}

class LowestSlot final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    std::vector<double> starts;
    const double last = s.now_s + static_cast<double>(s.job.budget_s);
    for (double start = s.now_s; start <= last; start = s.outlook.next_border(start)) starts.push_back(start);
    return best_start(s, starts, [&](double start) { return s.outlook.value_at(start); });
  }
};

class LowestWindow final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    const auto length = static_cast<double>(s.job.expected_length_s);
    return best_start(s, starts_after_arrival(s),
                      [&](double start) { return s.outlook.integral(start, start + length); });
  }
};

class CarbonTime final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    const auto length = static_cast<double>(s.job.expected_length_s);
    const double now = s.outlook.integral(s.now_s, s.now_s + length);
    return best_start(s, starts_after_arrival(s), [&](double start) {
      return -(now - s.outlook.integral(start, start + length)) / (start - s.now_s + length);
    });
  }
};

}  // namespace

std::unique_ptr<Policy> make_now_policy() {
  return std::make_unique<Now>();
}
std::unique_ptr<Policy> make_lowest_slot_policy() {
  return std::make_unique<LowestSlot>();
}
std::unique_ptr<Policy> make_lowest_window_policy() {
  return std::make_unique<LowestWindow>();
}
std::unique_ptr<Policy> make_carbon_time_policy() {
  return std::make_unique<CarbonTime>();
}

}  // namespace moebius::queue
