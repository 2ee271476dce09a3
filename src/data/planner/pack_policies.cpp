#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "data/planner/fill.h"
#include "data/planner/planner.h"

namespace moebius::data {
namespace {

// What may stay empty of a micro-batch without a further search, as a share.
constexpr double kTolerance = 1.0 / 4096;

// Planners that choose from a Window.
class WindowPlanner : public Planner {
 public:
  WindowPlanner(std::unique_ptr<DocumentStream> from, const PlanShape& shape, const CostModel& cost)
      : Planner(std::move(from), shape, cost), window_(stream(), shape.window, shape.context) {}

 protected:
  std::vector<Pending> pending() const override { return window_.pending(); }
  std::vector<int64_t> numbers() const override {
    return {window_.num_arrived(), window_.sum_lengths(), window_.sum_squares()};
  }
  void resume(const std::vector<Pending>& pending, const std::vector<int64_t>& numbers) override {
    MOEBIUS_CHECK_EQ(numbers.size(), size_t{3});
    window_.restore(pending, numbers[0], numbers[1], numbers[2]);
  }

  // The micro-batch's cost without padding.
  double cost_of(const MicroBatchPlan& micro_batch) const {
    double sum = 0;
    for (const Piece& piece : micro_batch.pieces) sum += cost().of(piece.length);
    return sum;
  }

  Window window_;
};

class PackPlanner : public WindowPlanner {
 public:
  using WindowPlanner::WindowPlanner;

 protected:
  void plan(std::vector<MicroBatchPlan>& micro_batches) override {
    const int64_t capacity = shape().capacity();
    window_.fill(step());
    for (MicroBatchPlan& each : micro_batches) {
      if (window_.empty()) return;
      const TokenRoom room{capacity, kTolerance * static_cast<double>(capacity)};
      const int32_t oldest = window_.oldest();
      const int64_t length = window_.at(oldest).piece.length;
      window_.take(oldest, each);
      const TokenRoom left = fill(window_, room.without(length), shape().context, each);
      each.cost = cost_of(each);
      if (window_.empty()) return;  // the stream ends here, and with it the last micro-batch
      each.padding = left.tokens;
      each.cost += cost().of(left.tokens);
    }
  }
};

class BalancedPlanner : public WindowPlanner {
 public:
  using WindowPlanner::WindowPlanner;

 protected:
  void plan(std::vector<MicroBatchPlan>& micro_batches) override {
    window_.fill(step());
    if (window_.empty()) return;
    const auto count = static_cast<int64_t>(micro_batches.size());
    const double target = target_cost();
    const int64_t longest = cost().longest(target);
    if (ends_within(target * static_cast<double>(count))) {
      spread(micro_batches);
    } else {
      const std::vector<Outlier> outliers = outliers_to_plan(longest, count);
      double raised = target;
      for (const Outlier& each : outliers) raised = std::max(raised, cost().of(each.length));
      for (size_t i = 0; i < micro_batches.size() && !window_.empty(); ++i) {
        const bool has_outlier = i < outliers.size() && still_waits(outliers[i]);
        fill_one(has_outlier ? outliers[i].slot : oldest_up_to(longest), raised, longest, micro_batches[i]);
      }
      if (window_.empty()) even_out(micro_batches);
    }
    for (MicroBatchPlan& each : micro_batches) each.cost = cost_of(each);
    deal_to_ranks(micro_batches);
    adjust_scale(micro_batches);
  }

  std::vector<int64_t> numbers() const override {
    std::vector<int64_t> numbers = WindowPlanner::numbers();
    numbers.push_back(scale_);
    return numbers;
  }
  void resume(const std::vector<Pending>& pending, const std::vector<int64_t>& numbers) override {
    scale_ = numbers.at(3);
    WindowPlanner::resume(pending, {numbers.begin(), numbers.begin() + 3});
  }

 private:
  static constexpr int64_t kOne = int64_t{1} << 20;  // of scale_

  // A piece that costs more than a mean micro-batch.
  struct Outlier {
    int64_t arrival, length;
    int32_t slot;
  };

  // What a micro-batch of `capacity` tokens costs at the mean of all pieces seen so far, corrected so that
  // steps have the tokens of `capacity` on average.
  double target_cost() const {
    const auto tokens = static_cast<double>(window_.sum_lengths());
    const auto squares = static_cast<double>(window_.sum_squares());
    const double per_token =
        cost().linear_flops + cost().expert_flops + cost().attention_flops * squares / tokens;
    return per_token * static_cast<double>(shape().capacity()) * static_cast<double>(scale_) /
           static_cast<double>(kOne);
  }

  // Steps of short pieces only would have more tokens than those of long ones. Moves the scale by 1/16 of
  // what this step differs, in whole numbers.
  void adjust_scale(const std::vector<MicroBatchPlan>& micro_batches) {
    const int64_t wanted = shape().capacity() * static_cast<int64_t>(micro_batches.size());
    int64_t tokens = 0;
    for (const MicroBatchPlan& each : micro_batches) tokens += each.tokens;
    const double off = static_cast<double>(wanted - tokens) / static_cast<double>(wanted);
    scale_ += std::llround(static_cast<double>(scale_) * off / 16);
    scale_ = std::clamp(scale_, kOne / 2, 2 * kOne);
  }

  // Whether all that waits, with no more to come, costs no more than one step.
  bool ends_within(double step_cost) const {
    if (window_.size() >= shape().window) return false;
    double sum = 0;
    for (int32_t slot = window_.oldest(); slot != Window::kNone; slot = window_.after(slot)) {
      sum += cost().of(window_.at(slot).piece.length);
    }
    return sum <= step_cost;
  }

  // Pieces that cost more than the target, oldest first: one for each micro-batch when there are so many,
  // fewer when one has waited too long or they fill the window; else none.
  std::vector<Outlier> outliers_to_plan(int64_t longest, int64_t count) const {
    std::vector<Outlier> outliers;
    for (int64_t length = window_.smallest_at_least(longest + 1); length > 0;
         length = window_.smallest_at_least(length + 1)) {
      for (int32_t slot = window_.oldest_of(length); slot != Window::kNone;
           slot = window_.after_of_length(slot)) {
        outliers.push_back({window_.at(slot).arrival, length, slot});
      }
    }
    if (outliers.empty()) return {};
    std::sort(outliers.begin(), outliers.end(),
              [](const Outlier& a, const Outlier& b) { return a.arrival < b.arrival; });
    const auto waiting = static_cast<int64_t>(outliers.size());
    const bool overdue = step() - window_.at(outliers.front().slot).entered >= shape().max_delay;
    const bool crowded = 2 * waiting > window_.size();
    if (waiting < count && !overdue && !crowded) return {};
    if (waiting > count) outliers.resize(count);
    return outliers;
  }

  // An earlier micro-batch of the step may have taken it to fill up.
  bool still_waits(const Outlier& outlier) const {
    const Pending& pending = window_.at(outlier.slot);
    return pending.arrival == outlier.arrival && window_.oldest_of(outlier.length) != Window::kNone;
  }

  // The oldest piece that is no longer than that, or the oldest of all when there is none.
  int32_t oldest_up_to(int64_t longest) const {
    int32_t slot = window_.oldest();
    while (slot != Window::kNone && window_.at(slot).piece.length > longest) slot = window_.after(slot);
    return slot == Window::kNone ? window_.oldest() : slot;
  }

  void fill_one(int32_t first, double target, int64_t longest, MicroBatchPlan& micro_batch) {
    const CostRoom room{&cost(), target, shape().balanced_capacity(), kTolerance * target};
    const int64_t length = window_.at(first).piece.length;
    window_.take(first, micro_batch);
    fill(window_, room.without(length), longest, micro_batch);
  }

  // The stream ended within the step, whose first micro-batches are full: shares out its pieces anew, where
  // that is possible within the limit of tokens.
  void even_out(std::vector<MicroBatchPlan>& micro_batches) const {
    std::vector<std::pair<Piece, int64_t>> pieces;
    for (const MicroBatchPlan& each : micro_batches) {
      for (size_t i = 0; i < each.pieces.size(); ++i) pieces.emplace_back(each.pieces[i], each.arrivals[i]);
    }
    std::sort(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) {
      return a.first.length != b.first.length ? a.first.length > b.first.length : a.second < b.second;
    });
    std::vector<MicroBatchPlan> even(micro_batches.size());
    for (const auto& [piece, arrival] : pieces) {
      MicroBatchPlan& least = *std::min_element(even.begin(), even.end(),
                                                [](const auto& a, const auto& b) { return a.cost < b.cost; });
      if (least.tokens + piece.length > shape().balanced_capacity()) return;
      least.pieces.push_back(piece);
      least.arrivals.push_back(arrival);
      least.tokens += piece.length;
      least.cost += cost().of(piece.length);
    }
    micro_batches = std::move(even);
  }

  // The last step: the most expensive piece first, each to the micro-batch that has least (Graham 1969). What
  // no micro-batch has tokens for is left to a further step.
  void spread(std::vector<MicroBatchPlan>& micro_batches) {
    std::vector<double> sums(micro_batches.size());
    while (!window_.empty()) {
      const int64_t length = window_.largest_at_most(shape().context);
      size_t least = sums.size();
      for (size_t i = 0; i < sums.size(); ++i) {
        const bool fits = micro_batches[i].tokens + length <= shape().balanced_capacity();
        if (fits && (least == sums.size() || sums[i] < sums[least])) least = i;
      }
      if (least == sums.size()) return;
      sums[least] += cost().of(length);
      window_.take(window_.oldest_of(length), micro_batches[least]);
    }
  }

  // Micro-batches of nearly equal cost run at the same time on all ranks, and no rank always has the most.
  void deal_to_ranks(std::vector<MicroBatchPlan>& micro_batches) const {
    const int64_t ranks = shape().ranks, per_rank = shape().micro_batches;
    if (ranks == 1) return;
    std::vector<int64_t> order(micro_batches.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return micro_batches[a].cost > micro_batches[b].cost; });
    std::vector<MicroBatchPlan> dealt(micro_batches.size());
    for (size_t i = 0; i < order.size(); ++i) {
      const int64_t turn = static_cast<int64_t>(i) / ranks, place = static_cast<int64_t>(i) % ranks;
      const int64_t rank = turn % 2 == 0 ? place : ranks - 1 - place;
      dealt[rank * per_rank + turn] = std::move(micro_batches[order[i]]);
    }
    micro_batches = std::move(dealt);
  }

  int64_t scale_ = kOne;
};

}  // namespace

std::unique_ptr<Planner> make_pack_planner(std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                           const CostModel& cost) {
  return std::make_unique<PackPlanner>(std::move(stream), shape, cost);
}

std::unique_ptr<Planner> make_balanced_planner(std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                               const CostModel& cost) {
  return std::make_unique<BalancedPlanner>(std::move(stream), shape, cost);
}

}  // namespace moebius::data
