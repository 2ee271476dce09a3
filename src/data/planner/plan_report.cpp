#include "data/planner/plan_report.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

namespace moebius::data {
namespace {

// Sums of the largest and of the mean over steps.
struct Imbalance {
  double largest = 0, mean = 0, worst = 1;

  void add(const std::vector<double>& values) {
    double max = 0, sum = 0;
    for (const double value : values) {
      max = std::max(max, value);
      sum += value;
    }
    const double average = sum / static_cast<double>(values.size());
    largest += max;
    mean += average;
    worst = std::max(worst, max / average);
  }
  double ratio() const { return mean > 0 ? largest / mean : 1; }
};

struct Balance {
  Imbalance tokens, cost, rank_cost;

  void add(const std::vector<const MicroBatchPlan*>& micro_batches, int64_t ranks) {
    std::vector<double> sizes, costs, of_ranks(ranks);
    const size_t per_rank = std::max<size_t>(micro_batches.size() / ranks, 1);
    for (size_t i = 0; i < micro_batches.size(); ++i) {
      sizes.push_back(static_cast<double>(micro_batches[i]->tokens + micro_batches[i]->padding));
      costs.push_back(micro_batches[i]->cost);
      of_ranks[std::min<size_t>(i / per_rank, ranks - 1)] += micro_batches[i]->cost;
    }
    tokens.add(sizes);
    cost.add(costs);
    rank_cost.add(of_ranks);
  }
};

int64_t max_delay(const std::vector<int64_t>& step_of_arrival) {
  int64_t delay = 0, first_later = std::numeric_limits<int64_t>::max();
  for (auto step = step_of_arrival.rbegin(); step != step_of_arrival.rend(); ++step) {
    delay = std::max(delay, *step - first_later);
    first_later = std::min(first_later, *step);
  }
  return delay;
}

}  // namespace

PlanReport plan_all(Planner& planner, const PlanShape& shape) {
  using Clock = std::chrono::steady_clock;
  PlanReport report;
  StepPlan plan, last;
  Balance balance, of_last;
  std::vector<int64_t> step_of_arrival;
  Clock::duration planning{};
  bool held = false;  // `last` holds a step that may be the final one
  const auto present = [](const StepPlan& step) {
    std::vector<const MicroBatchPlan*> micro_batches;
    for (const MicroBatchPlan& each : step.micro_batches) {
      if (!each.pieces.empty()) micro_batches.push_back(&each);
    }
    return micro_batches;
  };
  for (;;) {
    const auto begin = Clock::now();
    const bool more = planner.next(plan);
    planning += Clock::now() - begin;
    if (!more) break;
    if (held) balance.add(present(last), shape.ranks);
    for (const MicroBatchPlan* each : present(plan)) {
      ++report.micro_batches;
      report.tokens += each->tokens;
      report.padding += each->padding;
      report.pieces += static_cast<int64_t>(each->pieces.size());
      report.largest_micro_batch = std::max(report.largest_micro_batch, each->tokens + each->padding);
      for (size_t i = 0; i < each->pieces.size(); ++i) {
        const auto arrival = static_cast<size_t>(each->arrivals[i]);
        if (arrival >= step_of_arrival.size()) step_of_arrival.resize(arrival + 1);
        step_of_arrival[arrival] = plan.step;
        report.documents += each->pieces[i].begin == 0;
      }
    }
    ++report.steps;
    std::swap(last, plan);
    held = true;
  }
  if (held && report.steps == 1) balance.add(present(last), shape.ranks);
  report.max_over_mean_tokens = balance.tokens.ratio();
  report.max_over_mean_cost = balance.cost.ratio();
  report.max_over_mean_rank_cost = balance.rank_cost.ratio();
  report.worst_cost = balance.cost.worst;
  report.max_delay_steps = max_delay(step_of_arrival);
  report.seconds = std::chrono::duration<double>(planning).count();
  return report;
}

}  // namespace moebius::data
