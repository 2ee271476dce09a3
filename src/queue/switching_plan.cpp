#include "queue/switching_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace moebius::queue {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMaxPrices = 60;  // six are usual

// Workers of each slot, and the part of the slot in which they run.
struct Allocation {
  std::vector<int> workers;
  std::vector<double> begin, end;  // cut at the edges of a run
  double work = 0, cost = 0;
};

class Planner {
 public:
  Planner(const Situation& s, const std::vector<Slot>& slots)
      : s_(s), slots_(slots), states_(s.scaling.max_workers() + 2) {}

  // The cheapest allocation for a price of work; ties go to less work.
  Allocation at_price(double price) const {
    const size_t count = slots_.size();
    std::vector<double>&best = best_, &next = next_;
    best.assign(states_, kInfinity);
    next.resize(states_);
    best[initial_state()] = 0;
    std::vector<int>& from = from_;
    from.assign(count * states_, -1);
    for (size_t i = 0; i < count; ++i) {
      std::fill(next.begin(), next.end(), kInfinity);
      const double seconds = slots_[i].seconds();
      for (int before = 0; before < states_; ++before) {
        if (best[before] == kInfinity) continue;
        const auto offer = [&](int state, double score) {
          if (best[before] + score < next[state]) {
            next[state] = best[before] + score;
            from[i * states_ + state] = before;
          }
        };
        offer(before == kFresh ? kFresh : kPaused, 0);
        for (int workers = 1; workers <= slots_[i].max_workers; ++workers) {
          const double work = s_.scaling.speed(workers) * (seconds - lost(i, before, workers));
          offer(state_of(workers), slots_[i].value * s_.scaling.power(workers) * seconds - price * work);
        }
      }
      best.swap(next);
    }
    Allocation allocation;
    allocation.workers.assign(count, 0);
    int state = static_cast<int>(std::min_element(best.begin(), best.end()) - best.begin());
    for (size_t i = count; i-- > 0;) {
      allocation.workers[i] = workers_of(state);
      state = from[i * states_ + state];
    }
    fill(allocation);
    return allocation;
  }

  // The most work that fits.
  Allocation fastest() const { return at_price(1e9 * highest_value()); }

  // Sets whole slots, work and cost from the workers.
  void fill(Allocation& a) const {
    a.begin.clear();
    a.end.clear();
    for (const Slot& each : slots_) {
      a.begin.push_back(each.begin_s);
      a.end.push_back(each.end_s);
    }
    count(a);
  }

  // Removes work beyond `needed` from the edges of runs, the most expensive first.
  void trim(Allocation& a, double needed) const {
    while (a.work - needed > kRounding) {
      size_t worst = slots_.size();
      bool at_end = false;
      double highest = -1;
      for (size_t i = 0; i < slots_.size(); ++i) {
        if (a.workers[i] == 0) continue;
        const double per_work =
            slots_[i].value * s_.scaling.power(a.workers[i]) / s_.scaling.speed(a.workers[i]);
        if (per_work <= highest) continue;
        const bool right = i + 1 == slots_.size() || a.workers[i + 1] == 0 || a.begin[i + 1] > a.end[i];
        const bool left = i == 0 ? s_.workers == 0 : a.workers[i - 1] == 0 || a.end[i - 1] < a.begin[i];
        if (!right && !left) continue;
        worst = i;
        at_end = right;
        highest = per_work;
      }
      if (worst == slots_.size()) return;
      const int workers = a.workers[worst];
      const double begin = a.begin[worst], end = a.end[worst], work = a.work, cost = a.cost;
      const double excess = (a.work - needed) / s_.scaling.speed(a.workers[worst]);
      const double cut = std::min(excess, a.end[worst] - a.begin[worst]);
      if (cut == a.end[worst] - a.begin[worst]) {
        a.workers[worst] = 0;
      } else if (at_end) {
        a.end[worst] -= cut;
      } else {
        a.begin[worst] += cut;
      }
      count(a);
      if (a.work < needed - kRounding || a.cost > cost) {
        // The cut split a run, or took away what another needed: back.
        a.workers[worst] = workers;
        a.begin[worst] = begin;
        a.end[worst] = end;
        a.work = work;
        a.cost = cost;
        return;
      }
    }
  }

  // Work and cost of an allocation as the replay would count them.
  void count(Allocation& a) const {
    a.work = a.cost = 0;
    int before = initial_state();
    double until = s_.now_s;
    for (size_t i = 0; i < slots_.size(); ++i) {
      const int workers = a.workers[i];
      if (workers == 0) continue;
      if (a.begin[i] > until && before != kFresh) before = kPaused;
      const double seconds = a.end[i] - a.begin[i];
      a.work += s_.scaling.speed(workers) * (seconds - lost(i, before, workers));
      a.cost += slots_[i].value * s_.scaling.power(workers) * seconds;
      before = state_of(workers);
      until = a.end[i];
    }
  }

  // Most that a second of work costs in any slot.
  double dearest_work() const {
    double dearest = 0;
    for (int workers = 1; workers <= s_.scaling.max_workers(); ++workers) {
      if (s_.scaling.speed(workers) > 0)
        dearest = std::max(dearest, s_.scaling.power(workers) / s_.scaling.speed(workers));
    }
    return dearest * highest_value();
  }

  double highest_value() const {
    double highest = 0;
    for (const Slot& each : slots_) highest = std::max(highest, each.value);
    return highest;
  }

 private:
  // States between slots: never started, paused, running with workers.
  static constexpr int kFresh = 0, kPaused = 1;
  static int state_of(int workers) { return workers + 1; }
  static int workers_of(int state) { return std::max(state - 1, 0); }
  int initial_state() const {
    if (s_.workers > 0) return state_of(s_.workers);
    return s_.started ? kPaused : kFresh;
  }
  // Time without progress when slot i runs `workers` after `before`.
  double lost(size_t i, int before, int workers) const {
    if (before == kFresh) return 0;
    if (before != state_of(workers)) return s_.switch_s;
    return i == 0 ? s_.switch_left_s : 0;
  }

  const Situation& s_;
  const std::vector<Slot>& slots_;
  int states_;
  mutable std::vector<double> best_, next_;  // of at_price
  mutable std::vector<int> from_;
};

std::vector<Piece> pieces_of(const Allocation& a) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < a.workers.size(); ++i) {
    if (a.workers[i] > 0) append(pieces, {a.begin[i], a.end[i], a.workers[i]});
  }
  return pieces;
}

}  // namespace

std::vector<Piece> switching_plan(const Situation& s, const std::vector<Slot>& slots) {
  const double needed = s.work_left_s;
  const Planner planner(s, slots);
  Allocation enough = slots.empty() ? Allocation() : planner.fastest();
  if (enough.work < needed - kRounding) {
    std::vector<Piece> pieces = pieces_of(enough);
    const double behind = slots.empty() ? s.now_s : slots.back().end_s;
    for (const Piece& each : run_on(s.calendar, s.job, behind, needed - enough.work + s.switch_s))
      append(pieces, each);
    return pieces;
  }
  // Allocations with too little and with enough work; the price at which both are worth the same either
  // yields one that is worth more, which takes the place of one of them, or there is none between them.
  Allocation little = planner.at_price(0);
  for (int i = 0; i < kMaxPrices && little.work < needed && enough.work > little.work; ++i) {
    const double price = (enough.cost - little.cost) / (enough.work - little.work);
    Allocation each = planner.at_price(price);
    const double worth = each.cost - price * each.work, known = little.cost - price * little.work;
    if (!(worth < known - 1e-9 * std::abs(known))) break;
    (each.work >= needed ? enough : little) = std::move(each);
  }
  // The relaxation leaves a gap between the last allocation with too little work and the first with enough.
  // Candidates in it: the smaller one with one slot changed, and one up to a slot with the other from it on;
  // each is cut to what is needed.
  const double dearest = planner.dearest_work(), start_up = s.switch_s * s.scaling.max_speed();
  Allocation best = enough;
  planner.trim(best, needed);
  const auto consider = [&](Allocation& candidate) {
    planner.fill(candidate);
    if (candidate.work < needed) return;
    // What is taken back, and a start-up with it, saves no more than that.
    if (candidate.cost - (candidate.work - needed + start_up) * dearest >= best.cost) return;
    planner.trim(candidate, needed);
    if (candidate.cost < best.cost) std::swap(best, candidate);
  };
  Allocation candidate;  // one for all: its vectors keep their memory
  for (size_t i = 0; i < slots.size(); ++i) {
    for (int workers = little.workers[i] + 1; workers <= slots[i].max_workers; ++workers) {
      candidate.workers = little.workers;
      candidate.workers[i] = workers;
      consider(candidate);
    }
  }
  for (size_t split = 1; split < slots.size(); ++split) {
    for (const bool little_first : {true, false}) {
      const auto first = static_cast<std::ptrdiff_t>(little_first ? 0 : split);
      const auto last = static_cast<std::ptrdiff_t>(little_first ? split : slots.size());
      if (std::equal(little.workers.begin() + first, little.workers.begin() + last,
                     enough.workers.begin() + first))
        continue;  // it is the larger one
      candidate.workers = enough.workers;
      std::copy(little.workers.begin() + first, little.workers.begin() + last,
                candidate.workers.begin() + first);
      consider(candidate);
    }
  }
  return pieces_of(best);
}

}  // namespace moebius::queue
